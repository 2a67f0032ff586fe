//! The driver on glommio: its three rings, its parking, its timers, its blocking thread.
//!
//! What moves is copied once more, each way: glommio reads into memory of its own and takes writes
//! from that alone. What else it costs: a boxed future an operation; three rings and 10 MiB of
//! locked memory a shard; and a second descriptor for a file that is written durably, since there
//! is no RWF_DSYNC: a handle with O_DSYNC, opened for the first such write, whose writes are
//! durable when they complete, at no further call.
//!
//! Invariants:
//! 1. An operation is seen to its end whoever drops it ([`Kept`]): glommio would cancel a dropped
//!    one, which may leave half a write, and frees its buffers with its rings, whatever the kernel
//!    still does with them; with every flight over there is nothing left to cancel or to write.
//! 2. Before any file is opened, one with a written page was: glommio learns from the first that it
//!    sees whether a device is polled, and what an empty or a reserved file teaches it is wrong.
//! 3. A file is opened by `beneath`, and then once more by its descriptor, under /proc, for glommio
//!    takes paths alone, and follows links in them.
//!
//! Deliberately not here: what is done to names (`hosted`). Nor file systems without O_DIRECT,
//! other than tmpfs: glommio refuses them.

use crate::buf::AlignedBuf;
use crate::error::{Error, ErrorKind};
use crate::io::Durability;
use crate::io::beneath::again;
use crate::io::disk::{Direction, FILE_MODE, Step, Transfer};
use crate::io::hosted::{End, Flight, Flights, Hosted, OpenFile, Pause, Runtime};
use crate::io::launch::{Launch, ShardMain};
use crate::io::uring;
use crate::types::PAGE;
use bytes::Bytes;
use glommio::io::{DmaFile, OpenOptions};
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement};
use rustix::fs::{Mode, OFlags};
use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// A wait that is over when the reactor has been around once.
const TURN: Duration = Duration::from_micros(1);

/// The runtime, as the executor uses it: it finds its own in the thread's locals.
pub(super) struct Glommio;

/// The life of a shard's thread on this driver.
pub(super) fn live<M: ShardMain>(launch: &Launch, main: M) {
    let executor = match build() {
        Ok(executor) => executor,
        Err(error) => return main.refused(error),
    };
    let end = executor.run(async {
        match settle_in(launch).await {
            Ok(host) => host.live(launch, main).await,
            Err(error) => {
                main.refused(error);
                End::unborn()
            }
        }
    });
    end.settle(executor);
}

fn build() -> Result<LocalExecutor, Error> {
    // Where there is no io_uring glommio panics, or ends the process.
    uring::probe()?;
    let builder = LocalExecutorBuilder::new(Placement::Unbound);
    builder.make().map_err(|error| {
        let error = plain(error);
        let message = format!("glommio cannot start, raise its limits: cause={error}");
        Error::with_source(ErrorKind::Full, message, error)
    })
}

/// A driver that knows its device.
async fn settle_in(launch: &Launch) -> Result<Hosted<Glommio>, Error> {
    let host = Hosted::build(Glommio, launch)?;
    let shown = match written_file(&host) {
        Ok(file) => show(&file).await,
        Err(error) => Err(error),
    };
    shown.map(|()| host).map_err(|error| {
        let message = format!("glommio cannot use the store's file system: cause={error}");
        Error::with_source(ErrorKind::InvalidInput, message, error)
    })
}

/// A file without a name that has a written page.
fn written_file(host: &Hosted<Glommio>) -> io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(FILE_MODE);
    let file = rustix::fs::openat(host.root().as_fd(), ".", flags, mode)?;
    again(|| Ok(rustix::io::pwrite(&file, &[0; PAGE], 0)?))?;
    again(|| Ok(rustix::fs::fdatasync(&file)?))?;
    Ok(file)
}

async fn show(file: &OwnedFd) -> io::Result<()> {
    let opened = open_again(file, OFlags::empty()).await?;
    opened.close().await.map_err(plain)
}

/// Opens an open file as one of glommio's.
async fn open_again(file: &impl AsRawFd, flags: OFlags) -> io::Result<DmaFile> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(flags.bits() as i32);
    options.dma_open(path).await.map_err(plain)
}

/// The error of the call behind one of glommio's, which hides its number.
fn plain(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::EnhancedIoError { source, .. } => source,
        error => error.into(),
    }
}

/// An operation as a future; dropped early, it goes on as a task of glommio's.
///
/// It is polled as soon as it is made, so that there is none to drop that has not begun.
struct Kept<T: 'static>(Option<Pin<Box<dyn Future<Output = T>>>>);

impl<T> Kept<T> {
    fn new(operation: impl Future<Output = T> + 'static) -> Kept<T> {
        Kept(Some(Box::pin(operation)))
    }
}

impl<T> Future for Kept<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let operation = self.0.as_mut().expect("polled after its end");
        let result = std::task::ready!(operation.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(result)
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some(operation) = self.0.take() {
            glommio::spawn_local(async move { drop(operation.await) }).detach();
        }
    }
}

/// A file's handles.
pub(super) struct Handles {
    /// The option is only for taking it out.
    visible: Option<DmaFile>,
    /// With O_DSYNC, once there was something to write durably.
    synced: OnceCell<DmaFile>,
    /// What closing them is counted by.
    flights: Flights,
}

impl Handles {
    fn visible(&self) -> &DmaFile {
        self.visible.as_ref().expect("taken only at the end")
    }

    /// The handle for writes that are to be durable.
    async fn synced(&self) -> io::Result<&DmaFile> {
        if self.synced.get().is_none() {
            let opened = open_again(self.visible(), OFlags::DSYNC).await?;
            // Another write may have been quicker.
            if let Err(spare) = self.synced.set(opened) {
                close(self.flights.enter(), spare);
            }
        }
        Ok(self.synced.get().expect("set just now"))
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        for file in self.visible.take().into_iter().chain(self.synced.take()) {
            close(self.flights.enter(), file);
        }
    }
}

/// Closes a file, in the background.
fn close(flight: Flight, file: DmaFile) {
    let close = async move {
        // There is nobody to tell, and the descriptor is gone in any case.
        let _ = file.close().await;
        drop(flight);
    };
    glommio::spawn_local(close).detach();
}

impl Runtime for Glommio {
    const NAME: &'static str = "glommio";

    type File = Handles;

    fn pause(&self, span: Duration) -> Pause {
        Box::pin(glommio::timer::sleep(span))
    }

    fn turn(&self) -> Pause {
        // A task that wakes itself is run until a timer of 100 ms preempts it.
        self.pause(TURN)
    }

    fn block<T: Send + 'static>(
        &self,
        flight: Flight,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static {
        Kept::new(async move {
            let _flight = flight;
            glommio::executor().spawn_blocking(work).await
        })
    }

    fn adopt(
        &self,
        flight: Flight,
        fd: OwnedFd,
    ) -> impl Future<Output = io::Result<Handles>> + 'static {
        Kept::new(async move {
            let visible = open_again(&fd, OFlags::empty()).await?;
            Ok(Handles {
                visible: Some(visible),
                synced: OnceCell::new(),
                flights: flight.flights(),
            })
        })
    }

    fn read(
        &self,
        flight: Flight,
        file: OpenFile<Glommio>,
        offset: u64,
        mut buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        Kept::new(async move {
            let _flight = flight;
            let handle = file.file().visible();
            let mut transfer = Transfer::new(Direction::Read, buf.len());
            loop {
                let (start, piece) = (transfer.start(), transfer.piece());
                let read = handle.read_at_aligned(offset + start as u64, piece).await;
                let moved = read.map(|bytes| {
                    buf[start..start + bytes.len()].copy_from_slice(&bytes);
                    bytes.len()
                });
                match transfer.note(moved.map_err(plain)) {
                    Step::Again => {}
                    Step::Done => return Ok(buf),
                    Step::Failed(error) => return Err(error),
                }
            }
        })
    }

    fn write(
        &self,
        flight: Flight,
        file: OpenFile<Glommio>,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        Kept::new(async move {
            let _flight = flight;
            let handle = match durability {
                Durability::Visible => file.file().visible(),
                Durability::Synced => file.file().synced().await?,
            };
            let mut transfer = Transfer::new(Direction::Write, bytes.len());
            loop {
                let (start, piece) = (transfer.start(), transfer.piece());
                let mut buffer = handle.alloc_dma_buffer(piece);
                let part = &bytes[start..start + piece];
                buffer.as_bytes_mut().copy_from_slice(part);
                let moved = handle.write_at(buffer, offset + start as u64).await;
                match transfer.note(moved.map_err(plain)) {
                    Step::Again => {}
                    Step::Done => return Ok(()),
                    Step::Failed(error) => return Err(error),
                }
            }
        })
    }

    fn sync(
        &self,
        flight: Flight,
        file: OpenFile<Glommio>,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        whole(flight, async move || {
            file.file().visible().fdatasync().await
        })
    }

    fn allocate(
        &self,
        flight: Flight,
        file: OpenFile<Glommio>,
        len: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        whole(flight, async move || {
            file.file().visible().pre_allocate(len, false).await
        })
    }
}

/// An operation that moves nothing, so that of its transfer only the tries count.
fn whole(
    flight: Flight,
    call: impl AsyncFn() -> Result<(), GlommioError<()>> + 'static,
) -> Kept<io::Result<()>> {
    Kept::new(async move {
        let _flight = flight;
        let mut transfer = Transfer::new(Direction::Write, 0);
        loop {
            match transfer.note(call().await.map(|()| 0).map_err(plain)) {
                Step::Again => {}
                Step::Done => return Ok(()),
                Step::Failed(error) => return Err(error),
            }
        }
    })
}
