//! Uploads by the SDK alone, beside ours in upload: what the server, the link and these processors
//! let through when nothing is written to a disk first.
//!
//! Equalised: the same bytes in objects of the same size, through the same link, with CRC-32C as
//! their checksum and no other; created only where nothing is. The bodies are in memory before the
//! clock runs, and all of them are the same bytes.

use crate::bench::{Bench, Pace};
use crate::link::Link;
use crate::measure::Sample;
use crate::s3_server::{BUCKET, KEY_ID, SECRET};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use bytes::Bytes;

/// The side's name.
pub const PUTS: &str = "aws-sdk-s3";

/// Puts `bytes`, in objects of `object_bytes`, with so many under way.
pub fn puts(
    bench: &Bench,
    link: &Link,
    bytes: u64,
    object_bytes: u64,
    streams: usize,
) -> anyhow::Result<Sample> {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new(KEY_ID, SECRET, None, None, "perf"))
        .endpoint_url(format!("http://127.0.0.1:{}", link.port))
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .build();
    let client = Client::from_conf(config);
    let body: Bytes = bench
        .noise
        .repeat((object_bytes as usize).div_ceil(bench.noise.len()))
        .into();
    let body = body.slice(..object_bytes as usize);
    let objects = bytes / object_bytes;
    bench.tasks(streams, object_bytes, |stream| {
        let (client, body) = (client.clone(), body.clone());
        let mut pace = Pace::count((stream as u64..objects).step_by(streams).count() as u64);
        async move {
            while pace.goes_on() {
                client
                    .put_object()
                    .bucket(BUCKET)
                    .key(format!("put-{stream}-{}", pace.ops))
                    .if_none_match("*")
                    .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                    .body(ByteStream::from(body.clone()))
                    .customize()
                    .disable_payload_signing()
                    .send()
                    .await?;
                pace.done();
            }
            Ok(pace)
        }
    })
}
