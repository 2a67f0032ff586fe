//! How a store is opened. Plain values, checked once, before anything is touched.

use crate::error::{Error, Result};
use crate::retention::RetentionPolicy;
use crate::types::{PAGE, SEGMENT_BYTES_MAX};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Smallest segment: a header, a footer and enough pages between them to be worth a file.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// Most shards of a store; a thread each.
const SHARDS_MAX: usize = 1024;

/// Everything that a store is opened with; [`Config::new`] has the defaults.
///
/// # Example
///
/// ```
/// let mut config = ringstore::Config::new("/var/lib/app/store");
/// config.shards = Some(2);
/// config.local_bytes_max = Some(200 << 30);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Directory of the store; made if it is missing.
    pub dir: PathBuf,
    /// Shards, one thread each. `None`: as the store was made, or the available cores for a new
    /// one.
    pub shards: Option<usize>,
    /// Whether each shard's thread is pinned to a core.
    pub pin_threads: bool,
    /// How the kernel is spoken to.
    pub driver: DriverKind,
    /// Block size in bytes: the unit in which `copy` and `stats` count, not a unit of storage.
    pub block_bytes: u64,
    /// Size in bytes of a log segment; 64 KiB to 256 MiB, a multiple of 4 KiB.
    pub segment_bytes: u64,
    /// Limit of local bytes, for the whole store. `None`: unlimited.
    pub local_bytes_max: Option<u64>,
    /// Limit of memory for bytes that are not yet durable, for the whole store.
    pub dirty_bytes_max: u64,
    /// Memory of the read buffer, for the whole store; 0 disables it.
    pub read_buffer_bytes: u64,
    /// How long a shard spins before it parks.
    pub idle_spin: Duration,
    /// Bytes that are read ahead at once at most, for the whole store; 0 disables prefetching. They
    /// go into the read buffer, so without one nothing is read ahead.
    pub prefetch_bytes_max: u64,
    /// Dirty bytes older than this are appended to the log without being asked.
    pub flush_after: Duration,
    /// With a remote: an open segment older than this is sealed and uploaded.
    pub seal_after: Duration,
    /// How long a writer is held back by a full store before it fails with `Full`.
    pub stall_timeout: Duration,
    /// How long `close` may take.
    pub close_timeout: Duration,
    /// What may be evicted, unless a payload has a policy of its own.
    pub retention: RetentionPolicy,
    /// The remote tier. `None`: the store is local only.
    pub remote: Option<RemoteConfig>,
    /// Operations slower than this are logged.
    pub slow_op: Option<Duration>,
}

impl Config {
    /// The defaults, for a store in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            shards: None,
            pin_threads: true,
            driver: DriverKind::Auto,
            block_bytes: 8 << 20,
            segment_bytes: 16 << 20,
            local_bytes_max: None,
            dirty_bytes_max: 64 << 20,
            read_buffer_bytes: 64 << 20,
            idle_spin: Duration::ZERO,
            prefetch_bytes_max: 32 << 20,
            flush_after: Duration::from_millis(200),
            seal_after: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(30),
            retention: RetentionPolicy::Lru,
            remote: None,
            slow_op: None,
        }
    }

    /// Refuses values that could not work, before anything is made.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(shards) = self.shards
            && (shards == 0 || shards > SHARDS_MAX)
        {
            return Err(Error::invalid(format!(
                "shards must be 1 to {SHARDS_MAX}: shards={shards}"
            )));
        }
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(PAGE as u64)
        {
            return Err(Error::invalid(format!(
                "segment_bytes must be a multiple of {PAGE} from {SEGMENT_BYTES_MIN} to \
                 {SEGMENT_BYTES_MAX}: segment_bytes={}",
                self.segment_bytes
            )));
        }
        if self.block_bytes == 0 {
            return Err(Error::invalid("block_bytes must not be 0"));
        }
        self.driver.check()
    }
}

/// Which driver speaks to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum DriverKind {
    /// io_uring where the kernel allows it, else threads, with a warning.
    #[default]
    Auto,
    /// io_uring, or an error that says why not.
    Uring,
    /// Blocking calls on a small pool of threads.
    Threads,
    /// The runtime glommio; only in builds with the feature `glommio`.
    Glommio,
    /// The runtime tokio-uring; only in builds with the feature `tokio-uring`.
    TokioUring,
}

impl DriverKind {
    /// Refuses a driver that this build has not.
    pub(crate) fn check(self) -> Result<()> {
        let is_built = match self {
            DriverKind::Auto | DriverKind::Uring | DriverKind::Threads => true,
            DriverKind::Glommio => cfg!(feature = "glommio"),
            DriverKind::TokioUring => cfg!(feature = "tokio-uring"),
        };
        match is_built {
            true => Ok(()),
            // The feature of a driver has its name.
            false => Err(Error::invalid(format!(
                "this build has not that driver, build ringstore with --features {self}: \
                 driver={self}"
            ))),
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DriverKind::Auto => "auto",
            DriverKind::Uring => "uring",
            DriverKind::Threads => "threads",
            DriverKind::Glommio => "glommio",
            DriverKind::TokioUring => "tokio-uring",
        })
    }
}

impl FromStr for DriverKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<DriverKind> {
        match text {
            "auto" => Ok(DriverKind::Auto),
            "uring" => Ok(DriverKind::Uring),
            "threads" => Ok(DriverKind::Threads),
            "glommio" => Ok(DriverKind::Glommio),
            "tokio-uring" => Ok(DriverKind::TokioUring),
            _ => Err(Error::invalid(format!(
                "unknown driver, use auto, uring, threads, glommio or tokio-uring: driver={text}"
            ))),
        }
    }
}

/// Where sealed segments are kept for good.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RemoteConfig {
    /// A bucket of an S3 server.
    S3(S3Config),
    /// A directory that stands for a bucket.
    Dir(PathBuf),
    /// A bucket in this process's memory, by name.
    Memory(String),
}

impl RemoteConfig {
    /// Whether it is to be written to also where two engines could write to it.
    pub(crate) fn is_unfenced(&self) -> bool {
        matches!(self, RemoteConfig::S3(s3) if s3.unfenced)
    }

    /// Reads `s3://bucket/prefix?endpoint=..&region=..&path_style=true`, `file:///path`,
    /// `memory:name`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for any other scheme, an unknown option or a missing part. It does not repeat
    /// what was given: there may be a secret in it, where none belongs.
    pub fn from_url(url: &str) -> Result<RemoteConfig> {
        let refuse = |why: &str| Err(Error::invalid(why));
        if let Some(name) = url.strip_prefix("memory:") {
            return match name {
                "" => refuse("a memory remote needs a name"),
                _ => Ok(RemoteConfig::Memory(name.to_owned())),
            };
        }
        if let Some(path) = url.strip_prefix("file://") {
            return match path.starts_with('/') {
                true => Ok(RemoteConfig::Dir(PathBuf::from(path))),
                false => refuse("a file remote needs an absolute path"),
            };
        }
        match url.strip_prefix("s3://") {
            Some(rest) => S3Config::from_url_rest(rest).map(RemoteConfig::S3),
            None => refuse(
                "a remote is s3://bucket/prefix, file:///path or memory:name, and this is none",
            ),
        }
    }
}

/// A bucket of an S3 server. Credentials that are not given come from the usual AWS chain.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct S3Config {
    /// Name of the bucket.
    pub bucket: String,
    /// Put before every object's name; empty, or ends in `/`.
    pub prefix: String,
    /// Server to speak to; `None`: AWS.
    pub endpoint: Option<String>,
    /// Region of the bucket; `None`: from the AWS chain.
    pub region: Option<String>,
    /// Whether the bucket stands in the path instead of the host name.
    pub path_style: bool,
    /// Whether to write to a server that cannot create objects conditionally.
    pub unfenced: bool,
    /// Public part of the credentials; `None`: from the AWS chain.
    pub access_key_id: Option<String>,
    /// Secret part of the credentials; there if and only if the public one is.
    pub secret_access_key: Option<String>,
    /// Token of credentials that are for a while; only with the other two.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Config {
    /// Shows whether there are credentials, and nothing of them: configurations get into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let S3Config {
            bucket,
            prefix,
            endpoint,
            region,
            path_style,
            unfenced,
            access_key_id,
            secret_access_key,
            session_token,
        } = self;
        let given = [access_key_id, secret_access_key, session_token];
        let is_given = given.iter().any(|part| part.is_some());
        f.debug_struct("S3Config")
            .field("bucket", bucket)
            .field("prefix", prefix)
            .field("endpoint", &endpoint.as_deref().map(without_login))
            .field("region", region)
            .field("path_style", path_style)
            .field("unfenced", unfenced)
            .field("credentials", &if is_given { "given" } else { "chain" })
            .finish()
    }
}

impl S3Config {
    /// A bucket on AWS, with no prefix.
    pub fn new(bucket: impl Into<String>) -> S3Config {
        S3Config {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: false,
            unfenced: false,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
        }
    }

    fn from_url_rest(rest: &str) -> Result<S3Config> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let mut config = S3Config::new(bucket);
        config.prefix = match prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match name {
                "endpoint" => config.endpoint = Some(value.to_owned()),
                "region" => config.region = Some(value.to_owned()),
                "path_style" => config.path_style = parse_bool("path_style", value)?,
                "unfenced" => config.unfenced = parse_bool("unfenced", value)?,
                _ => {
                    return Err(Error::invalid(
                        "options of an s3 remote are endpoint, region, path_style and unfenced; \
                         credentials come from the environment or the AWS profile",
                    ));
                }
            }
        }
        config.check()?;
        Ok(config)
    }

    /// What no server has to be asked for: `InvalidInput` says what to change, and repeats nothing.
    pub(crate) fn check(&self) -> Result<()> {
        let is_sign = |sign: char| sign.is_ascii_alphanumeric() || "-._".contains(sign);
        if self.bucket.is_empty() {
            return Err(Error::invalid(
                "an s3 remote needs a bucket: s3://bucket/prefix",
            ));
        }
        if !self.bucket.chars().all(is_sign) {
            return Err(Error::invalid(
                "a bucket's name has letters, digits and -._ only; credentials come from the \
                 environment or the AWS profile, not from the remote's URL",
            ));
        }
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        if !(endpoint.starts_with("http://") || endpoint.starts_with("https://")) {
            return Err(Error::invalid(
                "an endpoint starts with http:// or https://",
            ));
        }
        match without_login(endpoint) == *endpoint {
            true => Ok(()),
            false => Err(Error::invalid(
                "an endpoint has no user name or password: credentials come from the environment \
                 or the AWS profile",
            )),
        }
    }
}

/// A URL without the name and password that somebody may have put before its host.
fn without_login(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.find('/').unwrap_or(rest.len());
    match rest[..host].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

fn parse_bool(name: &str, value: &str) -> Result<bool> {
    value
        .parse()
        .map_err(|_| Error::invalid(format!("{name} of a remote is true or false")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn urls_of_remotes_are_read() {
        let dir = RemoteConfig::from_url("file:///var/bucket").unwrap();
        assert_eq!(dir, RemoteConfig::Dir(PathBuf::from("/var/bucket")));
        let memory = RemoteConfig::from_url("memory:mine").unwrap();
        assert_eq!(memory, RemoteConfig::Memory("mine".to_owned()));
        let url = "s3://b-1/a/b/?endpoint=http://127.0.0.1:9000&region=eu&path_style=true";
        let mut s3 = S3Config::new("b-1");
        s3.prefix = "a/b/".to_owned();
        s3.endpoint = Some("http://127.0.0.1:9000".to_owned());
        s3.region = Some("eu".to_owned());
        s3.path_style = true;
        assert_eq!(RemoteConfig::from_url(url).unwrap(), RemoteConfig::S3(s3));
    }

    #[test]
    fn secrets_are_never_repeated() {
        let refused = [
            "s3://KEY:HUSH@bucket/prefix",
            "s3://HUSH@bucket",
            "s3://bucket?endpoint=http://KEY:HUSH@127.0.0.1:9000",
            "s3://bucket?endpoint=HUSH",
            "s3://bucket?secret_access_key=HUSH",
            "s3://bucket?HUSH=1",
            "s3://bucket?path_style=HUSH",
            "https://KEY:HUSH@bucket.s3.amazonaws.com",
            "HUSH",
            "file://HUSH",
        ];
        for url in refused {
            let error = RemoteConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(!format!("{error} {error:?}").contains("HUSH"), "{url}");
        }
        let mut config = S3Config::new("bucket");
        config.endpoint = Some("https://KEY:HUSH@127.0.0.1/p@th".to_owned());
        assert!(!format!("{config:?}").contains("HUSH"));
        assert!(config.check().is_err());
        config.endpoint = Some("https://127.0.0.1/p@th".to_owned());
        config.check().unwrap();
    }

    #[test]
    fn drivers_are_what_they_are_called_and_refused_where_they_are_not_built() {
        let kinds = [
            (DriverKind::Auto, true),
            (DriverKind::Uring, true),
            (DriverKind::Threads, true),
            (DriverKind::Glommio, cfg!(feature = "glommio")),
            (DriverKind::TokioUring, cfg!(feature = "tokio-uring")),
        ];
        for (kind, is_built) in kinds {
            assert_eq!(kind.to_string().parse::<DriverKind>().unwrap(), kind);
            let mut config = Config::new("/nowhere");
            config.driver = kind;
            let Err(error) = config.check() else {
                assert!(is_built, "{kind}");
                continue;
            };
            assert!(!is_built, "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let feature = format!("--features {kind}");
            assert!(error.to_string().contains(&feature), "{error}");
        }
        assert!("io_uring".parse::<DriverKind>().is_err());
    }
}
