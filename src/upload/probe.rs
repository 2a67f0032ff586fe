//! Small requests that only find out whether the bucket answers.
//!
//! Invariant: each ends within `PROBE_TIMEOUT`, and leaves nothing in the bucket that counts.

use super::health::Way;
use super::{Runtime, Service, manifest, no_answer, within};
use crate::error::{Error, ErrorKind, Result};
use crate::remote::Failure;
use bytes::Bytes;
use std::time::Duration;

/// Pause between two questions whether a bad bucket is back.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// What was heard of the bucket so long ago tells nothing of it now.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long a probe may take: it asks for a name, or makes an object of a few bytes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

impl<R: Runtime> Service<R> {
    /// Asks a bucket that is bad, or slow, whether it is there, until it is.
    pub(super) fn start_probing(&self, way: Way) {
        if self.0.probing.borrow().contains(&way) {
            return;
        }
        self.0.probing.borrow_mut().push(way);
        let service = self.clone();
        self.0.runtime.spawn(async move {
            loop {
                service.0.runtime.sleep(PROBE_PAUSE).await;
                if way == Way::Writes && service.0.fenced.borrow().is_some() {
                    break;
                }
                match service.probe(way).await {
                    Err(failure) => service.note_failure(way, &failure),
                    Ok(()) => {
                        let now = service.0.runtime.now();
                        // That small things succeed excuses no large ones that fail.
                        match service.0.health.is_bad(way) {
                            true => service.0.health.note_success(way, now),
                            false => service.0.health.note_heard(now),
                        }
                        break;
                    }
                }
            }
            service.0.probing.borrow_mut().retain(|other| *other != way);
        });
    }

    /// Somebody wants to know how the bucket is: it is asked, if nobody has done so lately.
    pub(super) fn look(&self) {
        let now = self.0.runtime.now();
        if self.0.health.silence(now) > SILENCE_MAX {
            self.start_probing(Way::Reads);
        }
    }

    /// Whether the bucket can be read, for who has nothing else to ask of it.
    pub(super) async fn asked_once(&self) -> Result<()> {
        self.probe(Way::Reads).await.map_err(|failure| {
            let message = format!("the remote does not answer: {failure}");
            Error::new(ErrorKind::Unavailable, message)
        })
    }

    async fn probe(&self, way: Way) -> std::result::Result<(), Failure> {
        let probe = within(&self.0.runtime, PROBE_TIMEOUT, self.small_request(way)).await;
        probe.unwrap_or_else(|| Err(no_answer(PROBE_TIMEOUT)))
    }

    async fn small_request(&self, way: Way) -> std::result::Result<(), Failure> {
        let remote = &*self.0.remote;
        match way {
            Way::Reads => {
                remote.list(manifest::MANIFEST_PREFIX, None, 1).await?;
            }
            Way::Writes => {
                let body = vec![Bytes::from_static(b"probe")];
                // There already, it was made by an earlier probe: that is an answer, too.
                remote.create(&self.0.probe, body).await?;
                remote.delete(std::slice::from_ref(&self.0.probe)).await?;
            }
        }
        Ok(())
    }
}
