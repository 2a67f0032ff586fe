//! A request's body of several parts, sent as they lie in memory, again if an attempt fails.

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_smithy_types::base64;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The parts, one after the other.
pub(super) fn of(parts: Vec<Bytes>) -> ByteStream {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([part]) => ByteStream::from(part),
        Err(parts) => {
            let again = move || SdkBody::from_body_1_x(Parts::new(parts.clone()));
            ByteStream::new(SdkBody::retryable(again))
        }
    }
}

/// CRC-32C of the parts, one after the other, as S3 has it: big-endian and in Base64.
pub(super) fn checksum(parts: &[Bytes]) -> String {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| digest.update(part));
    base64::encode((digest.finalize() as u32).to_be_bytes())
}

struct Parts {
    /// Those that have not gone, last first; none of them is empty.
    left: Vec<Bytes>,
}

impl Parts {
    fn new(mut parts: Vec<Bytes>) -> Parts {
        parts.retain(|part| !part.is_empty());
        parts.reverse();
        Parts { left: parts }
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.left.pop().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    /// Exact: it becomes the length that the request announces.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.iter().map(|part| part.len() as u64).sum())
    }
}
