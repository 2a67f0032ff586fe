//! One client, until it has chosen an export.
//!
//! Invariants:
//! 1. A client that says nothing for `PATIENCE` is let go.
//! 2. No more than `proto::OPTION_BYTES_MAX` bytes of an option are held.
//! 3. An export is made only by a client that wants to go on with it, never by one that asks.

use super::export::Export;
use super::proto::{
    self, Asked, Context, OPTION_BYTES_MAX, OPTION_SKIPPED_BYTES_MAX, OptionError, OptionHead,
    OptionReply, Violation,
};
use bytes::BytesMut;
use ringstore::{Error, ErrorKind, PayloadId, Store};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long a client may take for each thing that it is to say or to hear. People type in `nbdsh`.
const PATIENCE: Duration = Duration::from_secs(300);

/// Payloads in one part of a list: it is sent before the next is asked for.
const LIST_PAGE: usize = 256;

/// What clients may choose from.
pub(crate) struct Exports {
    pub(crate) store: Store,
    /// The size of exports that are made because a client asks for them.
    pub(crate) create: Option<u64>,
    /// Held while one is made: of two clients only one makes it.
    pub(crate) creating: Mutex<()>,
}

/// What a client and the server have agreed on.
pub(crate) struct Agreed {
    pub(crate) export: Export,
    pub(crate) structured: bool,
}

/// What a handshake has come to after an option.
enum Next {
    Another,
    GoOn(Box<Agreed>),
    Leave,
}

struct Handshake<'a> {
    stream: &'a mut UnixStream,
    exports: &'a Exports,
    zeros: bool,
    structured: bool,
    /// Contexts that were set, and for which export.
    contexts: (String, Vec<Context>),
    out: BytesMut,
}

/// Talks to a client until it has an export; `None` if it does not want one.
pub(crate) async fn negotiate(
    stream: &mut UnixStream,
    exports: &Exports,
) -> io::Result<Option<Agreed>> {
    let mut handshake = Handshake {
        stream,
        exports,
        zeros: false,
        structured: false,
        contexts: (String::new(), Vec::new()),
        out: BytesMut::new(),
    };
    handshake.out.extend_from_slice(&proto::greeting());
    handshake.send().await?;
    let mut flags = [0; 4];
    handshake.receive(&mut flags).await?;
    handshake.zeros = proto::wants_zeros(u32::from_be_bytes(flags)).map_err(violated)?;
    loop {
        let mut head = [0; proto::OPTION_HEAD_BYTES];
        handshake.receive(&mut head).await?;
        let head = OptionHead::parse(&head).map_err(violated)?;
        let next = handshake.option(head).await?;
        handshake.send().await?;
        match next {
            Next::Another => {}
            Next::GoOn(agreed) => return Ok(Some(*agreed)),
            Next::Leave => return Ok(None),
        }
    }
}

/// A breach of the protocol as the error that ends a connection.
pub(crate) fn violated(violation: Violation) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, violation.0)
}

impl Handshake<'_> {
    async fn receive(&mut self, target: &mut [u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.read_exact(target)).await??;
        Ok(())
    }

    async fn send(&mut self) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(&self.out)).await??;
        self.out.clear();
        Ok(())
    }

    async fn option(&mut self, head: OptionHead) -> io::Result<Next> {
        if head.len > OPTION_SKIPPED_BYTES_MAX {
            return Err(violated(Violation("an option of more than 1 MiB")));
        }
        if head.len > OPTION_BYTES_MAX {
            let mut skipped = [0; 4096];
            let mut left = head.len as usize;
            while left > 0 {
                let part = left.min(skipped.len());
                self.receive(&mut skipped[..part]).await?;
                left -= part;
            }
            self.refuse(head.option, OptionError::TooBig, "the option is too long");
            return Ok(Next::Another);
        }
        let mut data = vec![0; head.len as usize];
        self.receive(&mut data).await?;
        let asked = match proto::parse_option(head.option, &data) {
            Ok(asked) => asked,
            // The old way knows no answer but to hang up.
            Err(why) if head.option == 1 => return Err(violated(Violation(why))),
            Err(why) => {
                self.refuse(head.option, OptionError::Invalid, why);
                return Ok(Next::Another);
            }
        };
        self.answer(head.option, asked).await
    }

    async fn answer(&mut self, option: u32, asked: Asked) -> io::Result<Next> {
        match asked {
            Asked::ExportName(name) => return self.old_way(&name).await,
            Asked::Info { go, name, .. } => return self.info(option, go, &name).await,
            Asked::Abort => {
                self.reply(option, &OptionReply::Ack);
                return Ok(Next::Leave);
            }
            Asked::List => self.list(option).await?,
            Asked::StructuredReply => {
                self.structured = true;
                self.reply(option, &OptionReply::Ack);
            }
            Asked::Meta { set, name, queries } => self.meta(option, set, name, &queries),
            Asked::Other => self.refuse(option, OptionError::Unsupported, "unknown option"),
        }
        Ok(Next::Another)
    }

    fn reply(&mut self, option: u32, reply: &OptionReply<'_>) {
        reply.put(option, &mut self.out);
    }

    fn refuse(&mut self, option: u32, error: OptionError, message: &str) {
        self.reply(option, &OptionReply::Error(error, message));
    }

    async fn old_way(&mut self, name: &str) -> io::Result<Next> {
        let (id, size) = self.find(name, true).await.map_err(io::Error::from)?;
        let flags = proto::export_flags(self.structured);
        proto::put_old_export(&mut self.out, size, flags, self.zeros);
        Ok(self.go_on(id, size, name))
    }

    async fn info(&mut self, option: u32, go: bool, name: &str) -> io::Result<Next> {
        let (id, size) = match self.find(name, go).await {
            Ok(found) => found,
            Err(error) => {
                let code = match error.kind() {
                    ErrorKind::NotFound | ErrorKind::InvalidInput => OptionError::Unknown,
                    _ => OptionError::Shutdown,
                };
                self.refuse(option, code, &error.to_string());
                return Ok(Next::Another);
            }
        };
        let flags = proto::export_flags(self.structured);
        self.reply(option, &OptionReply::Export(size, flags));
        self.reply(option, &OptionReply::Name(name));
        self.reply(option, &OptionReply::BlockSize);
        self.reply(option, &OptionReply::Ack);
        Ok(match go {
            true => self.go_on(id, size, name),
            false => Next::Another,
        })
    }

    fn go_on(&mut self, id: PayloadId, size: u64, name: &str) -> Next {
        let (chosen_for, contexts) = std::mem::take(&mut self.contexts);
        // What was chosen for another export does not count.
        let contexts = if chosen_for == name {
            contexts
        } else {
            Vec::new()
        };
        let store = self.exports.store.clone();
        Next::GoOn(Box::new(Agreed {
            export: Export {
                store,
                id,
                size,
                contexts,
            },
            structured: self.structured,
        }))
    }

    /// The payload behind a name, made if that is allowed and wanted.
    async fn find(&self, name: &str, wanted: bool) -> Result<(PayloadId, u64), Error> {
        let Exports {
            store,
            create,
            creating,
        } = self.exports;
        let id = PayloadId::new(name)?;
        let size = match (store.size(&id).await, create) {
            (Err(error), Some(size)) if error.kind() == ErrorKind::NotFound => *size,
            (found, _) => return Ok((id, found?)),
        };
        if wanted {
            let _only = creating.lock().await;
            if !store.exists(&id).await? {
                store.truncate(&id, size).await?;
            }
            return Ok((id.clone(), store.size(&id).await?));
        }
        Ok((id, size))
    }

    async fn list(&mut self, option: u32) -> io::Result<()> {
        let mut after = None;
        loop {
            let page = self.exports.store.list(after.as_ref(), LIST_PAGE).await?;
            for id in &page {
                self.reply(option, &OptionReply::Server(id.as_str()));
            }
            self.send().await?;
            match page.into_iter().last() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        self.reply(option, &OptionReply::Ack);
        Ok(())
    }

    fn meta(&mut self, option: u32, set: bool, name: String, queries: &[String]) {
        if !self.structured {
            return self.refuse(
                option,
                OptionError::Invalid,
                "structured replies come first",
            );
        }
        let all = queries.is_empty() && !set;
        let matches = |context: &Context| {
            let mut queries = queries.iter();
            all || queries.any(|query| Context::matching(query).any(|found| found == *context))
        };
        let found: Vec<Context> = Context::ALL.into_iter().filter(matches).collect();
        for context in &found {
            let number = if set { *context as u32 } else { 0 };
            self.reply(option, &OptionReply::MetaContext(number, context.name()));
        }
        self.reply(option, &OptionReply::Ack);
        if set {
            self.contexts = (name, found);
        }
    }
}
