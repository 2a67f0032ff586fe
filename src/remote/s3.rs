//! A bucket of an S3 server, through the AWS SDK.
//!
//! It asks for no more than what many servers do alike: conditional creates with `If-None-Match:
//! *`, ranged reads, listings and batch deletes, of names in one flat folder.
//!
//! 1. Nothing is asked when it is opened: a server that is away is met by the requests.
//! 2. Bodies go out as they are, unsigned, with a checksum for servers that look at it. Whatever
//!    those do, segments and manifests carry their own, which are checked when they are read.
//! 3. What arrives is counted. Fewer bytes than the object has are a failure, never a success.
//! 4. The SDK repeats a request a few times, for the hiccups. Outages are the uploader's matter.
//!
//! With credentials that may not list the bucket, AWS denies what is missing: give them
//! `ListBucket`.

mod answer;
mod body;

use super::{Created, Failure, FailureKind, Listed, Remote, Request, is_name};
use crate::config::S3Config;
use crate::error::Error;
use answer::{code, failure, status};
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Credentials, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Attempts of the SDK at one request: enough for a connection that a server has closed meanwhile
/// and one hiccup after it.
const ATTEMPTS: u32 = 3;

/// The SDK's first pause, on average half of it. Its own second is as long as a seal is awaited.
const BACKOFF: Duration = Duration::from_millis(50);

/// A server that is there answers a handshake in far less than one retransmission of it (1 s).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// From the last byte of a request to the first of the answer; slow servers take seconds under
/// load.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a body may stand still before it is given up.
const STALLED: Duration = Duration::from_secs(20);

/// Most names that servers take in a delete, and give in a page of a listing.
const BATCH: usize = 1000;

/// Region that requests are signed for when nobody names one, as most servers but AWS expect it.
const REGION: &str = "us-east-1";

/// A bucket of a server.
pub(crate) struct S3 {
    client: Client,
    bucket: String,
    prefix: String,
    /// Objects may be made without a condition, where the server knows none.
    unfenced: bool,
    knows_conditions: AtomicBool,
}

impl S3 {
    /// The bucket that the configuration names.
    pub(crate) async fn open(config: &S3Config) -> Result<S3, Error> {
        config.check()?;
        let shared = load(config).await?;
        let mut builder = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(config.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled()
                    .grace_period(STALLED)
                    .build(),
            );
        builder.set_endpoint_url(config.endpoint.clone().or_else(|| {
            // The chain's, which the conversion takes over, too.
            shared.endpoint_url().map(str::to_owned)
        }));
        Ok(S3 {
            client: Client::from_conf(builder.build()),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
            unfenced: config.unfenced,
            knows_conditions: AtomicBool::new(true),
        })
    }

    fn key(&self, name: &str) -> Result<String, Failure> {
        match is_name(name) {
            true => Ok(format!("{}{name}", self.prefix)),
            false => Err(Failure::bad_name(name)),
        }
    }

    /// The object's name that is behind a key.
    fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(self.prefix.as_str())
            .filter(|name| is_name(name))
    }

    async fn create_object(&self, name: &str, parts: Vec<Bytes>) -> Result<Created, Failure> {
        let key = self.key(name)?;
        let checksum = body::checksum(&parts);
        let conditional = self.knows_conditions.load(Ordering::Relaxed);
        let put = async |condition: Option<String>| {
            let put = self.client.put_object().bucket(&self.bucket).key(&key);
            let sent = put
                .set_if_none_match(condition)
                .checksum_crc32_c(&checksum)
                .body(body::of(parts.clone()))
                .customize()
                .disable_payload_signing()
                .send()
                .await;
            match sent {
                Ok(_) => Ok(Created::New),
                Err(error) if status(&error) == Some(412) => Ok(Created::Exists),
                Err(error) => Err(failure(&error)),
            }
        };
        match put(conditional.then(|| "*".to_owned())).await {
            Err(failure) if failure.kind == FailureKind::Unsupported && self.unfenced => {
                self.knows_conditions.store(false, Ordering::Relaxed);
                put(None).await
            }
            created => created,
        }
    }

    /// The bytes of a range and the length of the object, if the range has any.
    async fn get_range(
        &self,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<(Bytes, u64)>, Failure> {
        assert!(len > 0, "no header says an empty range");
        let range = match offset.checked_add(len - 1) {
            // Servers read the numbers as signed ones.
            Some(last) if last <= i64::MAX as u64 => format!("bytes={offset}-{last}"),
            _ => format!("bytes={offset}-"),
        };
        let sent = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(name)?)
            .range(range)
            .send()
            .await;
        match sent {
            Ok(answer) => receive(answer, offset, len).await,
            Err(error) if status(&error) == Some(416) => Ok(None),
            Err(error) => Err(failure(&error)),
        }
    }

    async fn get_bytes(&self, name: &str, offset: u64, len: u64) -> Result<Bytes, Failure> {
        if len == 0 || offset > i64::MAX as u64 {
            // There is nothing to get, but still something that may be missing.
            self.head_object(name).await?;
            return Ok(Bytes::new());
        }
        let got = self.get_range(name, offset, len).await?;
        Ok(got.map(|(bytes, _)| bytes).unwrap_or_default())
    }

    async fn head_object(&self, name: &str) -> Result<u64, Failure> {
        let sent = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.key(name)?)
            .send()
            .await;
        match sent {
            Ok(answer) => match answer.content_length().map(u64::try_from) {
                Some(Ok(len)) => Ok(len),
                _ => Err(odd("an object without a length")),
            },
            // An answer without a body cannot say whether it is the object or the bucket.
            Err(error) if status(&error) == Some(404) => {
                let got = self.get_range(name, 0, 1).await?;
                Ok(got.map_or(0, |(_, len)| len))
            }
            Err(error) => Err(failure(&error)),
        }
    }

    async fn list_objects(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, Failure> {
        let mut listed: Vec<Listed> = Vec::new();
        let mut token: Option<String> = None;
        while listed.len() < limit {
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(format!("{}{prefix}", self.prefix))
                .set_start_after(after.map(|after| format!("{}{after}", self.prefix)))
                .set_continuation_token(token.take())
                .max_keys((limit - listed.len()).min(BATCH) as i32)
                .send()
                .await
                .map_err(|error| failure(&error))?;
            self.take_page(&page, after, &mut listed)?;
            if !page.is_truncated().unwrap_or(false) {
                break;
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Err(odd("a listing that cannot be continued"));
            }
        }
        listed.truncate(limit);
        Ok(listed)
    }

    fn take_page(
        &self,
        page: &ListObjectsV2Output,
        after: Option<&str>,
        listed: &mut Vec<Listed>,
    ) -> Result<(), Failure> {
        for object in page.contents() {
            // The bucket may have other things in it.
            let Some(name) = object.key().and_then(|key| self.name(key)) else {
                continue;
            };
            let before = listed.last().map(|last| last.name.as_str()).or(after);
            if before.is_some_and(|before| name <= before) {
                return Err(odd("a listing out of order"));
            }
            let Some(Ok(len)) = object.size().map(u64::try_from) else {
                return Err(odd("an object without a length"));
            };
            listed.push(Listed {
                name: name.to_owned(),
                len,
            });
        }
        Ok(())
    }

    async fn delete_batch(&self, names: &[String]) -> Result<Vec<(String, Failure)>, Failure> {
        assert!(names.len() <= BATCH);
        let mut delete = Delete::builder().quiet(true);
        for name in names {
            let object = ObjectIdentifier::builder().key(self.key(name)?).build();
            delete = delete.objects(object.map_err(|error| odd(&error.to_string()))?);
        }
        let delete = delete.build().map_err(|error| odd(&error.to_string()))?;
        let answer = self
            .client
            .delete_objects()
            .bucket(&self.bucket)
            .delete(delete)
            .send()
            .await
            .map_err(|error| failure(&error))?;
        let mut failed = Vec::new();
        for error in answer.errors() {
            let Some(name) = error.key().and_then(|key| self.name(key)) else {
                return Err(odd("an object that was not to be deleted, and was not"));
            };
            if error.code() != Some("NoSuchKey") {
                failed.push((name.to_owned(), code(error.code())));
            }
        }
        Ok(failed)
    }
}

impl Remote for S3 {
    fn create<'a>(&'a self, name: &'a str, body: Vec<Bytes>) -> Request<'a, Created> {
        Box::pin(self.create_object(name, body))
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u64) -> Request<'a, Bytes> {
        Box::pin(self.get_bytes(name, offset, len))
    }

    fn head<'a>(&'a self, name: &'a str) -> Request<'a, u64> {
        Box::pin(self.head_object(name))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Request<'a, Vec<Listed>> {
        Box::pin(self.list_objects(prefix, after, limit))
    }

    fn delete<'a>(&'a self, names: &'a [String]) -> Request<'a, Vec<(String, Failure)>> {
        Box::pin(async move {
            let (good, bad): (Vec<_>, Vec<_>) = names.iter().partition(|name| is_name(name));
            let refuse = |name: &String| (name.clone(), Failure::bad_name(name));
            let mut failed: Vec<(String, Failure)> = bad.into_iter().map(refuse).collect();
            let good: Vec<String> = good.into_iter().cloned().collect();
            for batch in good.chunks(BATCH) {
                failed.extend(self.delete_batch(batch).await?);
            }
            Ok(failed)
        })
    }
}

/// What the environment says, as far as the configuration does not.
async fn load(config: &S3Config) -> Result<SdkConfig, Error> {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .build();
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(BACKOFF);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts)
        .retry_config(retries);
    loader = match (&config.access_key_id, &config.secret_access_key) {
        (Some(id), Some(secret)) => {
            let token = config.session_token.clone();
            let given = Credentials::new(id, secret, token, None, "ringstore");
            loader.credentials_provider(given)
        }
        (None, None) if config.session_token.is_none() => loader,
        _ => {
            return Err(Error::invalid(
                "credentials are access_key_id and secret_access_key, and maybe session_token",
            ));
        }
    };
    // A server of one's own is not asked of the machine's cloud, which may be none and take seconds
    // to say so.
    let region = match (&config.region, &config.endpoint) {
        (Some(region), _) => Some(region.clone()),
        (None, Some(_)) => Some(std::env::var("AWS_REGION").unwrap_or_else(|_| REGION.to_owned())),
        (None, None) => None,
    };
    if let Some(region) = region {
        return Ok(loader.region(Region::new(region)).load().await);
    }
    let loaded = loader.load().await;
    Ok(match loaded.region() {
        Some(_) => loaded,
        None => loaded.into_builder().region(Region::new(REGION)).build(),
    })
}

/// What a server must not answer, though it may the next time.
fn odd(what: &str) -> Failure {
    let message = format!("the server's answer makes no sense: cause={what}");
    Failure::new(FailureKind::Transient, message)
}

/// The bytes of an answer to a ranged get, and the length of the object.
async fn receive(
    answer: GetObjectOutput,
    offset: u64,
    len: u64,
) -> Result<Option<(Bytes, u64)>, Failure> {
    let said = answer.content_range().map(answer::content_range);
    let bytes = answer.body.collect().await.map_err(|error| {
        let message = format!("the answer broke off: cause={error}");
        Failure::new(FailureKind::Transient, message)
    })?;
    let bytes = bytes.into_bytes();
    let (first, total) = match said {
        Some(Some(said)) => said,
        Some(None) => return Err(odd("a range that cannot be read")),
        // All of the object: this server knows no ranges, or not for this object.
        None => (0, bytes.len() as u64),
    };
    let end = offset.saturating_add(len).min(total);
    if offset >= end {
        return Ok(None);
    }
    let have = first..first + bytes.len() as u64;
    if !(have.start <= offset && end <= have.end) {
        return Err(odd(&format!("bytes {have:?} instead of {:?}", offset..end)));
    }
    let range = (offset - first) as usize..(end - first) as usize;
    Ok(Some((bytes.slice(range), total)))
}

#[cfg(test)]
mod tests;
