//! An S3 server in memory, on a socket of this process: signatures are checked, creates are atomic,
//! and it fails as it is told to.

#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(unreachable_pub, reason = "the unit tests have it as a private module")]

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag,
    GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob, UploadPartInput,
    UploadPartOutput,
};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::ops::Bound;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};

pub const BUCKET: &str = "bucket";
pub const KEY_ID: &str = "AKIATEST";
pub const SECRET: &str = "a secret of the tests";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// This status, and nothing was done.
    Before(u16),
    /// It was done, and this status says otherwise.
    After(u16),
    /// The connection goes before anything was done.
    DropBefore,
    /// The connection goes after it was done.
    DropAfter,
    /// A byte of the request's body is another one.
    Altered,
    /// Half of the answer's body, then the connection goes.
    Cut,
}

/// What the server makes of `If-None-Match`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditions {
    /// It keeps them.
    #[default]
    Kept,
    /// It takes them, and replaces what is there.
    Ignored,
    /// It refuses requests that have any.
    NotImplemented,
}

/// What the server has and how it is, shared with the test.
#[derive(Default)]
pub struct Shared {
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// Parts of uploads that are not complete; a key has one upload at a time.
    parts: Mutex<BTreeMap<(String, i32), Bytes>>,
    faults: Mutex<VecDeque<(Method, Fault)>>,
    conditions: Mutex<Conditions>,
    requests: AtomicU64,
}

/// A running server; it ends with this.
pub struct Server {
    pub port: u16,
    shared: Arc<Shared>,
    _stop: tokio::sync::oneshot::Sender<Infallible>,
}

impl Server {
    pub fn start() -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<Infallible>();
        let serving = shared.clone();
        let live = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, serving) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("s3-server".to_owned());
        thread.spawn(live).unwrap();
        Server {
            port,
            shared,
            _stop: stop,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next so many requests of this method fail so.
    pub fn fail(&self, method: Method, fault: Fault, times: usize) {
        let mut faults = self.shared.faults.lock().unwrap();
        faults.extend((0..times).map(|_| (method.clone(), fault)));
    }

    /// Forgets the faults; how many were left.
    pub fn heal(&self) -> usize {
        std::mem::take(&mut *self.shared.faults.lock().unwrap()).len()
    }

    /// How conditions are treated from now on.
    pub fn treat_conditions(&self, conditions: Conditions) {
        *self.shared.conditions.lock().unwrap() = conditions;
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    pub fn keys(&self) -> Vec<String> {
        self.shared
            .objects
            .lock()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    }

    /// Puts an object there past the interface.
    pub fn plant(&self, key: &str, body: &'static [u8]) {
        let body = Bytes::from_static(body);
        let mut objects = self.shared.objects.lock().unwrap();
        objects.insert(key.to_owned(), body);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut builder = S3ServiceBuilder::new(Bucket(shared.clone()));
    builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
    let service = builder.build();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(stream, service.clone(), shared.clone()));
    }
}

async fn serve(stream: TcpStream, service: S3Service, shared: Arc<Shared>) {
    // Without it every answer waits 40 ms for the client's acknowledgement.
    stream.set_nodelay(true).unwrap();
    let answering = service_fn(move |request| answer(request, service.clone(), shared.clone()));
    let connection = hyper::server::conn::http1::Builder::new();
    // Connections that end early are the tests' purpose.
    let _ = connection
        .serve_connection(TokioIo::new(stream), answering)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    service: S3Service,
    shared: Arc<Shared>,
) -> io::Result<Response<Answer>> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        let is_next = |(method, _): &mut (Method, Fault)| method == request.method();
        faults.pop_front_if(is_next).map(|(_, fault)| fault)
    };
    match fault {
        Some(Fault::Before(status)) => {
            read_all(request.into_body()).await?;
            return Ok(failed(status));
        }
        Some(Fault::DropBefore) => return Err(io::ErrorKind::ConnectionReset.into()),
        _ => {}
    }
    let request = match fault {
        Some(Fault::Altered) => altered(request).await?,
        _ => request.map(s3s::Body::from),
    };
    let answered = service.call(request).await;
    let answered = answered.map_err(|error| io::Error::other(format!("{error:?}")))?;
    let (head, body) = answered.into_parts();
    let body = read_all(body).await?;
    match fault {
        Some(Fault::After(status)) => Ok(failed(status)),
        Some(Fault::DropAfter) => Err(io::ErrorKind::ConnectionReset.into()),
        fault => {
            let sent = match fault {
                Some(Fault::Cut) => body.len() / 2,
                _ => body.len(),
            };
            let answer = Answer::new(body.slice(..sent), body.len());
            Ok(Response::from_parts(head, answer))
        }
    }
}

/// The request with a flipped bit in the middle of its body.
async fn altered(request: Request<Incoming>) -> io::Result<Request<s3s::Body>> {
    let (head, body) = request.into_parts();
    let mut body = read_all(body).await?.to_vec();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    Ok(Request::from_parts(head, Bytes::from(body).into()))
}

/// An answer of a proxy or of an overloaded server.
fn failed(status: u16) -> Response<Answer> {
    let code = match status {
        409 => "ConditionalRequestConflict",
        500 => "InternalError",
        503 => "SlowDown",
        _ => "Other",
    };
    let body = format!("<Error><Code>{code}</Code><Message>told to</Message></Error>");
    let len = body.len();
    let answer = Answer::new(body.into(), len);
    Response::builder().status(status).body(answer).unwrap()
}

async fn read_all<B>(body: B) -> io::Result<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let mut body = pin!(body);
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| io::Error::other(format!("{error:?}")))?;
        if let Ok(data) = frame.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.into())
}

/// A body that may end before its length.
struct Answer {
    next: Option<Bytes>,
    left: u64,
    flushed: Pin<Box<tokio::time::Sleep>>,
}

/// Time in which what was sent of an answer is surely on its way.
const FLUSHED: Duration = Duration::from_millis(50);

impl Answer {
    fn new(sent: Bytes, len: usize) -> Answer {
        Answer {
            next: Some(sent),
            left: len as u64,
            flushed: Box::pin(tokio::time::sleep(FLUSHED)),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let item = match self.next.take() {
            Some(bytes) if !bytes.is_empty() => {
                self.left -= bytes.len() as u64;
                Some(Ok(Frame::data(bytes)))
            }
            _ if self.left > 0 => {
                // Only when what was sent is out: else there is no answer at all.
                ready!(self.flushed.as_mut().poll(context));
                Some(Err(io::ErrorKind::ConnectionReset.into()))
            }
            _ => None,
        };
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The operations.
struct Bucket(Arc<Shared>);

impl Bucket {
    fn find(&self, bucket: &str, key: &str) -> S3Result<Bytes> {
        check(bucket)?;
        let objects = self.0.objects.lock().unwrap();
        let found = objects.get(key).cloned();
        found.ok_or_else(|| s3_error!(NoSuchKey, "no such key"))
    }
}

fn check(bucket: &str) -> S3Result<()> {
    match bucket == BUCKET {
        true => Ok(()),
        false => Err(s3_error!(NoSuchBucket, "no such bucket")),
    }
}

fn crc_of(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn tag(crc: u32) -> ETag {
    ETag::Strong(format!("{crc:08x}"))
}

/// A body, if it is whole, and its sum.
async fn receive(body: Option<StreamingBlob>, len: Option<i64>) -> S3Result<(Bytes, u32)> {
    use futures_util::StreamExt;
    let mut all = Vec::new();
    if let Some(mut body) = body {
        while let Some(part) = body.next().await {
            let part = part.map_err(|_| s3_error!(IncompleteBody, "the body broke off"))?;
            all.extend_from_slice(&part);
        }
    }
    if len.is_some_and(|len| len != all.len() as i64) {
        return Err(s3_error!(IncompleteBody, "the body is short"));
    }
    let crc = crc_of(&all);
    Ok((all.into(), crc))
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        check(&input.bucket)?;
        let (all, crc) = receive(input.body, input.content_length).await?;
        let good = aws_smithy_types::base64::encode(crc.to_be_bytes());
        if input.checksum_crc32c.is_some_and(|said| said != good) {
            return Err(s3_error!(BadDigest, "the body is another one"));
        }
        let conditions = *self.0.conditions.lock().unwrap();
        let mut is_conditional = input.if_none_match.is_some_and(|tag| tag.is_any());
        if is_conditional && conditions == Conditions::NotImplemented {
            return Err(s3_error!(
                NotImplemented,
                "a header that the server does not know"
            ));
        }
        is_conditional &= conditions == Conditions::Kept;
        let mut objects = self.0.objects.lock().unwrap();
        if is_conditional && objects.contains_key(&input.key) {
            return Err(s3_error!(PreconditionFailed, "the key is taken"));
        }
        objects.insert(input.key, all);
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(tag(crc)),
            ..PutObjectOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        check(&request.input.bucket)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            upload_id: Some("the only one".to_owned()),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        check(&input.bucket)?;
        let (part, crc) = receive(input.body, input.content_length).await?;
        let mut parts = self.0.parts.lock().unwrap();
        parts.insert((input.key, input.part_number), part);
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(tag(crc)),
            ..UploadPartOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        check(&input.bucket)?;
        let wanted = input.multipart_upload.and_then(|upload| upload.parts);
        let mut parts = self.0.parts.lock().unwrap();
        let mut all = Vec::new();
        for number in wanted.into_iter().flatten().map(|part| part.part_number) {
            let part = parts.remove(&(input.key.clone(), number.unwrap_or_default()));
            all.extend_from_slice(&part.ok_or_else(|| s3_error!(InvalidPart, "no such part"))?);
        }
        let crc = crc_of(&all);
        let mut objects = self.0.objects.lock().unwrap();
        objects.insert(input.key, all.into());
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: Some(tag(crc)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.find(&input.bucket, &input.key)?;
        let total = object.len() as u64;
        let mut output = GetObjectOutput::default();
        let body = match input.range {
            None => object,
            Some(range) => {
                let range = range.check(total)?;
                let (first, last) = (range.start, range.end - 1);
                output.content_range = Some(format!("bytes {first}-{last}/{total}"));
                object.slice(range.start as usize..range.end as usize)
            }
        };
        output.content_length = Some(body.len() as i64);
        let parts = futures_util::stream::iter([Ok::<_, Infallible>(body)]);
        output.body = Some(StreamingBlob::wrap(parts));
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.find(&request.input.bucket, &request.input.key)?;
        let output = HeadObjectOutput {
            content_length: Some(object.len() as i64),
            ..HeadObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        check(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.or(input.start_after);
        let max = input.max_keys.unwrap_or(1000).clamp(0, 1000) as usize;
        let objects = self.0.objects.lock().unwrap();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let found = objects.range::<String, _>((from, Bound::Unbounded));
        let mut found: Vec<Object> = found
            .filter(|(key, _)| key.starts_with(&prefix))
            .take(max + 1)
            .map(|(key, object)| Object {
                key: Some(key.clone()),
                size: Some(object.len() as i64),
                // Clients want one; none goes by it.
                last_modified: Some(SystemTime::UNIX_EPOCH.into()),
                ..Object::default()
            })
            .collect();
        let is_truncated = found.len() > max;
        found.truncate(max);
        let last = found.last().and_then(|last| last.key.clone());
        let output = ListObjectsV2Output {
            is_truncated: Some(is_truncated),
            next_continuation_token: last.filter(|_| is_truncated),
            key_count: Some(found.len() as i32),
            contents: Some(found),
            ..ListObjectsV2Output::default()
        };
        Ok(S3Response::new(output))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        check(&input.bucket)?;
        let mut objects = self.0.objects.lock().unwrap();
        let mut deleted = Vec::new();
        for object in input.delete.objects {
            objects.remove(&object.key);
            deleted.push(DeletedObject {
                key: Some(object.key),
                ..DeletedObject::default()
            });
        }
        let is_quiet = input.delete.quiet.unwrap_or(false);
        let output = DeleteObjectsOutput {
            deleted: (!is_quiet).then_some(deleted),
            ..DeleteObjectsOutput::default()
        };
        Ok(S3Response::new(output))
    }
}
