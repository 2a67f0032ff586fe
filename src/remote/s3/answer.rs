//! What a server's answer means. Pure.
//!
//! Statuses say more than names, which differ between servers; names decide where one status has
//! several meanings.
//!
//! A server's own words are not repeated: some give back the credentials that they were shown.

use super::super::{Failure, FailureKind};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;

/// Names of errors that pass, whatever their status: bodies that were damaged or cut on their way,
/// and credentials that the chain will renew.
const TRANSIENT: &[&str] = &[
    "BadDigest",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "TokenRefreshRequired",
    "XAmzContentSHA256Mismatch",
];

/// The answer's HTTP status, if there is one.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    Some(error.raw_response()?.status().as_u16())
}

/// Why a request failed.
pub(super) fn failure<E>(error: &SdkError<E, HttpResponse>) -> Failure
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let kind = match error {
        SdkError::ServiceError(_) => kind(status(error).unwrap_or(0), error.code()),
        // The request is made of constants and checked names.
        SdkError::ConstructionFailure(_) => FailureKind::Refused,
        // No answer, none in time, or none that can be read. Credentials that cannot be had are
        // among these, and may be had later.
        _ => FailureKind::Transient,
    };
    let message = match error {
        SdkError::ServiceError(_) => {
            let code = error.code().filter(|code| is_plain(code));
            let (code, status) = (code.unwrap_or("none"), status(error).unwrap_or(0));
            format!("the server refuses: status={status} code={code}")
        }
        _ => format!("the server cannot be reached: cause={}", causes(error)),
    };
    Failure::new(kind, message)
}

/// Whether this is the name of an error, and no sentence.
fn is_plain(code: &str) -> bool {
    code.len() <= 64 && code.bytes().all(|sign| sign.is_ascii_alphanumeric())
}

/// What an error and those behind it say of themselves.
fn causes(error: &dyn Error) -> String {
    let mut causes = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        causes = format!("{causes}: {cause}");
        next = cause.source();
    }
    causes
}

/// Why one object of several was not deleted.
pub(super) fn code(code: Option<&str>) -> Failure {
    let kind = match code {
        Some("AccessDenied" | "InvalidObjectState") => FailureKind::Refused,
        // Unknown ones included: it is tried again with others, not alone.
        _ => FailureKind::Transient,
    };
    let code = code.filter(|code| is_plain(code)).unwrap_or("none");
    let message = format!("the object is not deleted: code={code}");
    Failure::new(kind, message)
}

fn kind(status: u16, code: Option<&str>) -> FailureKind {
    if code.is_some_and(|code| TRANSIENT.contains(&code)) {
        return FailureKind::Transient;
    }
    match status {
        // Whoever answers 404 without this name is no bucket.
        404 if code == Some("NoSuchKey") => FailureKind::Missing,
        // 409 is a race for the name that nobody has won yet.
        0 | 408 | 409 | 425 | 429 => FailureKind::Transient,
        501 => FailureKind::Unsupported,
        505 => FailureKind::Refused,
        500.. => FailureKind::Transient,
        _ => FailureKind::Refused,
    }
}

/// Reads `bytes FIRST-LAST/TOTAL`: the first byte, and the length of the object.
pub(super) fn content_range(header: &str) -> Option<(u64, u64)> {
    let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_sorted_by_what_to_do() {
        use FailureKind::{Missing, Refused, Transient, Unsupported};
        let rows = [
            (404, Some("NoSuchKey"), Missing),
            (404, Some("NoSuchBucket"), Refused),
            (404, None, Refused),
            (403, Some("AccessDenied"), Refused),
            (403, Some("SignatureDoesNotMatch"), Refused),
            (403, None, Refused),
            (403, Some("ExpiredToken"), Transient),
            (400, Some("ExpiredToken"), Transient),
            (400, Some("RequestTimeout"), Transient),
            (400, Some("MalformedXML"), Refused),
            (301, Some("PermanentRedirect"), Refused),
            (409, Some("ConditionalRequestConflict"), Transient),
            (429, None, Transient),
            (500, Some("InternalError"), Transient),
            (501, Some("NotImplemented"), Unsupported),
            (503, Some("SlowDown"), Transient),
            (503, None, Transient),
        ];
        for (status, code, expected) in rows {
            assert_eq!(kind(status, code), expected, "{status} {code:?}");
        }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, 100)));
        for bad in ["", "bytes */100", "bytes 5-9/*", "items 5-9/100", "bytes 5"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
