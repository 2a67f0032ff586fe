//! The driver on tokio-uring: its ring under tokio's reactor, which waits for it with epoll.
//!
//! Bytes move without a copy. All operations are entries of our own making, since those of the
//! crate have neither RWF_DSYNC nor a way to read into our memory without `unsafe`; so a durable
//! write is one write, as in our own ring. What it costs beside that: an `epoll_wait` a park, no
//! registered files or buffers, no deferred task work (with DEFER_TASKRUN the crate hangs), and
//! sleeps that are rounded up to tokio's millisecond.
//!
//! Invariants:
//! 1. All that an entry points to is in its [`Held`], on the heap, and the runtime keeps that until
//!    the completion: a dropped future hands it over, nothing is cancelled. The crate takes any
//!    entry from safe code, so that this is for us to see to, and this the only place that does.
//! 2. The runtime tells the kernel of entries when it parks, and never while a task of its is
//!    ready. So the executor does not wake itself: a `turn` is an entry that does nothing, which
//!    completes in the park that it asks for.
//! 3. Fewer operations are under way than the completion queue holds, or else the kernel keeps what
//!    overflows until the next submission.
//!
//! Deliberately not here: what is done to names (`hosted`).

use crate::buf::AlignedBuf;
use crate::error::Error;
use crate::io::Durability;
use crate::io::disk::{Direction, Step, Transfer};
use crate::io::hosted::{End, Flight, Hosted, OpenFile, Pause, Runtime};
use crate::io::launch::{Launch, ShardMain};
use crate::io::uring::{self, Refusal};
use bytes::Bytes;
use io_uring_06::types::{Fd, FsyncFlags};
use io_uring_06::{cqueue, opcode, squeue};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// Entries of the submission queue, as of our own ring.
const ENTRIES: u32 = 256;

/// Entries of the completion queue: 64 KiB, for more operations than a flooded shard has.
const COMPLETIONS: u32 = 4096;

/// The runtime, as the executor uses it: it finds its own in the thread's locals.
pub(super) struct TokioUring;

/// The life of a shard's thread on this driver.
pub(super) fn live<M: ShardMain>(launch: &Launch, main: M) {
    let runtime = match build() {
        Ok(runtime) => runtime,
        Err(error) => return main.refused(error),
    };
    let end = runtime.block_on(async {
        match Hosted::build(TokioUring, launch) {
            Ok(host) => host.live(launch, main).await,
            Err(error) => {
                main.refused(error);
                End::unborn()
            }
        }
    });
    end.settle(runtime);
}

fn build() -> Result<tokio_uring::Runtime, Error> {
    uring::probe()?;
    let mut setup = tokio_uring::uring_builder();
    setup.setup_cqsize(COMPLETIONS);
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES).uring_builder(&setup);
    let runtime = tokio_uring::Runtime::new(&builder);
    runtime.map_err(|error| Refusal::from_setup(error).into())
}

/// What the kernel may touch until an operation completes, and what counts it.
struct Held<T> {
    file: OpenFile<TokioUring>,
    memory: T,
    _flight: Flight,
}

/// Gives back what an operation held.
struct Return<T>(PhantomData<T>);

impl<T: 'static> OneshotOutputTransform for Return<T> {
    type Output = (io::Result<usize>, Held<T>);
    type StoredData = Held<T>;

    fn transform_oneshot_output(self, held: Held<T>, entry: cqueue::Entry) -> Self::Output {
        let result = match entry.result() {
            moved @ 0.. => Ok(moved as usize),
            error => Err(io::Error::from_raw_os_error(-error)),
        };
        (result, held)
    }
}

/// Submits entries, each from where the transfer is, until it is whole or failed.
///
/// An entry may point to nothing but the memory that it is given, and name no file but that.
async fn transfer<T: Unpin + 'static>(
    mut held: Held<T>,
    mut transfer: Transfer,
    entry: impl Fn(Fd, &mut T, &Transfer) -> squeue::Entry,
) -> io::Result<T> {
    loop {
        let fd = Fd(held.file.file().as_raw_fd());
        let entry = entry(fd, &mut held.memory, &transfer);
        let operation = UnsubmittedOneshot::new(held, Return(PhantomData), entry);
        let (result, back) = operation.submit().await;
        held = back;
        match transfer.note(result) {
            Step::Again => {}
            Step::Done => return Ok(held.memory),
            Step::Failed(error) => return Err(error),
        }
    }
}

impl Runtime for TokioUring {
    const NAME: &'static str = "tokio-uring";

    type File = OwnedFd;

    fn pause(&self, span: Duration) -> Pause {
        Box::pin(tokio::time::sleep(span))
    }

    fn turn(&self) -> Pause {
        // One that fails has found the ring broken, which the operations are to say.
        Box::pin(async { drop(tokio_uring::no_op().await) })
    }

    fn block<T: Send + 'static>(
        &self,
        flight: Flight,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static {
        let job = tokio::task::spawn_blocking(move || {
            let _flight = flight;
            work()
        });
        async move { job.await.map_err(io::Error::other)? }
    }

    fn adopt(
        &self,
        _flight: Flight,
        fd: OwnedFd,
    ) -> impl Future<Output = io::Result<OwnedFd>> + 'static {
        std::future::ready(Ok(fd))
    }

    fn read(
        &self,
        flight: Flight,
        file: OpenFile<TokioUring>,
        offset: u64,
        buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        let progress = Transfer::new(Direction::Read, buf.len());
        let held = Held {
            file,
            memory: buf,
            _flight: flight,
        };
        transfer(held, progress, move |fd, buf, transfer| {
            let (start, piece) = (transfer.start(), transfer.piece());
            let memory = &mut buf[start..start + piece];
            opcode::Read::new(fd, memory.as_mut_ptr(), piece as u32)
                .offset(offset + start as u64)
                .build()
        })
    }

    fn write(
        &self,
        flight: Flight,
        file: OpenFile<TokioUring>,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let progress = Transfer::new(Direction::Write, bytes.len());
        let held = Held {
            file,
            memory: bytes,
            _flight: flight,
        };
        let flags = match durability {
            Durability::Visible => 0,
            Durability::Synced => nix::libc::RWF_DSYNC,
        };
        let write = transfer(held, progress, move |fd, bytes, transfer| {
            let (start, piece) = (transfer.start(), transfer.piece());
            let memory = &bytes[start..start + piece];
            opcode::Write::new(fd, memory.as_ptr(), piece as u32)
                .offset(offset + start as u64)
                .rw_flags(flags)
                .build()
        });
        async move { write.await.map(drop) }
    }

    fn sync(
        &self,
        flight: Flight,
        file: OpenFile<TokioUring>,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        whole(flight, file, |fd| {
            opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build()
        })
    }

    fn allocate(
        &self,
        flight: Flight,
        file: OpenFile<TokioUring>,
        len: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        whole(flight, file, move |fd| {
            opcode::Fallocate::new(fd, len).build()
        })
    }
}

/// An operation that moves nothing, so that of its transfer only the tries count.
fn whole(
    flight: Flight,
    file: OpenFile<TokioUring>,
    entry: impl Fn(Fd) -> squeue::Entry + 'static,
) -> impl Future<Output = io::Result<()>> + 'static {
    let held = Held {
        file,
        memory: (),
        _flight: flight,
    };
    let progress = Transfer::new(Direction::Write, 0);
    transfer(held, progress, move |fd, (), _| entry(fd))
}
