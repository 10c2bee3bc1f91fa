//! One client's connection, and the one upstream that belongs to it: requests one after another.

use super::{Fault, Request, State};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1 as client,
    header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue, RANGE, TRANSFER_ENCODING},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    io,
    net::TcpStream as StdStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};

type Body = BoxBody<Bytes, io::Error>;
type Upstream = client::SendRequest<Full<Bytes>>;

/// Serves connections until it is dropped.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors: the next connection may fare better.
                let Ok((stream, _)) = accepted else { tokio::task::yield_now().await; continue };
                state.shared().counts.connections += 1;
                connections.spawn(connection(stream, state.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let (Ok(()), Ok(stream)) = (stream.set_nodelay(true), stream.into_std()) else { return };
    // A second handle of the socket: a reset must be asked for while hyper owns the first.
    let (Ok(handle), Ok(stream)) = (stream.try_clone(), TcpStream::from_std(stream)) else { return };
    let client =
        Arc::new(Client { handle, state, upstream: Mutex::new(None), resets: AtomicBool::new(false) });
    let service = service_fn(|request| {
        let client = client.clone();
        async move { client.answer(request).await }
    });
    // Errors are what this program is for.
    let mut server = server::Builder::new();
    drop(server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await);
}

struct Client {
    handle: StdStream,
    state: Arc<State>,
    upstream: Mutex<Option<Upstream>>,
    resets: AtomicBool,
}

/// Counts a request as under way.
struct UnderWay<'a>(&'a State);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.shared().at_once -= 1;
    }
}

impl Client {
    /// The answer, or an error that closes the connection.
    async fn answer(&self, request: hyper::Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let (faults, _under_way) = self.draw(&request);
        let mut last = None;
        for fault in faults {
            match fault {
                Fault::Delay(time) | Fault::Stall(time) => tokio::time::sleep(time).await,
                Fault::Answer { status, code } => return refusal(request, status, &code).await,
                Fault::Reset => return Err(self.reset()),
                other => last = Some(other),
            }
        }
        let response = self.pass_on(request).await?;
        let Some(fault) = last else {
            return Ok(response.map(|body| self.counted(body)));
        };
        if fault == Fault::Blind && response.status() != StatusCode::PRECONDITION_FAILED {
            return Ok(response.map(|body| self.counted(body)));
        }
        let (mut head, body) = response.into_parts();
        let whole = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let half = whole.slice(..whole.len() / 2);
        let later = whole.slice(half.len()..);
        head.headers.remove(TRANSFER_ENCODING);
        head.headers.insert(CONTENT_LENGTH, whole.len().into());
        let body = match fault {
            Fault::Blind => {
                head.status = StatusCode::OK;
                head.headers.insert(CONTENT_LENGTH, 0.into());
                head.headers.insert(ETAG, HeaderValue::from_static("\"0\""));
                full(Bytes::new())
            }
            Fault::Lose => return Err(io::Error::other("the answer is lost")),
            Fault::Cut => broken_off(half),
            Fault::StallBody(time) => in_two(half, time, later),
            Fault::Shorten => {
                head.headers.insert(CONTENT_LENGTH, half.len().into());
                full(half)
            }
            _ => {
                let mut bytes = whole.to_vec();
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 0x10;
                }
                full(bytes.into())
            }
        };
        self.state.shared().counts.bytes += whole.len() as u64;
        Ok(Response::from_parts(head, body))
    }

    fn draw(&self, request: &hyper::Request<Incoming>) -> (Vec<Fault>, UnderWay<'_>) {
        let method = request.method().as_str();
        let path = request.uri().path().trim_start_matches('/');
        let key = path.split_once('/').map_or("", |(_, key)| key);
        let range = request.headers().get(RANGE).and_then(|r| r.to_str().ok()).unwrap_or_default();
        let part = format!("{range}?{}", request.uri().query().unwrap_or_default());
        let mut shared = self.state.shared();
        let faults = shared.dice.draw(&Request { method, key, part: &part });
        shared.at_once += 1;
        let at_once = shared.at_once;
        let counts = &mut shared.counts;
        counts.requests += 1;
        counts.most_at_once = counts.most_at_once.max(at_once);
        *counts.methods.entry(method.into()).or_default() += 1;
        for fault in &faults {
            *counts.faults.entry(fault.name()).or_default() += 1;
        }
        (faults, UnderWay(&self.state))
    }

    /// The upstream's answer to the same request.
    async fn pass_on(&self, request: hyper::Request<Incoming>) -> Result<Response<Incoming>, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let mut place = self.upstream.lock().await;
        // An upstream that has closed its side is found out only now: a second try is a new connection.
        for _ in 0..2 {
            let mut sender = match place.take() {
                Some(sender) if !sender.is_closed() => sender,
                _ => self.connect().await?,
            };
            if sender.ready().await.is_err() {
                continue;
            }
            let again = hyper::Request::from_parts(head.clone(), Full::new(body.clone()));
            match sender.try_send_request(again).await {
                Ok(response) => {
                    *place = Some(sender);
                    return Ok(response);
                }
                // Handed back unsent.
                Err(e) if e.message().is_some() => {}
                Err(e) => return Err(io::Error::other(e.into_error())),
            }
        }
        Err(io::Error::other("the upstream closes its connections"))
    }

    async fn connect(&self) -> Result<Upstream, io::Error> {
        let stream = TcpStream::connect(self.state.upstream).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = client::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends when its sender and the last answer are dropped.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Makes the close that follows a reset.
    fn reset(&self) -> io::Error {
        self.resets.store(true, Relaxed);
        drop(socket2::SockRef::from(&self.handle).set_linger(Some(Duration::ZERO)));
        io::Error::other("reset")
    }

    fn counted(&self, body: Incoming) -> Body {
        let state = self.state.clone();
        body.map_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            state.shared().counts.bytes += bytes;
            frame
        })
        .map_err(io::Error::other)
        .boxed()
    }
}

/// The request is read to its end, as a server would.
async fn refusal(
    request: hyper::Request<Incoming>,
    status: u16,
    code: &str,
) -> Result<Response<Body>, io::Error> {
    let bodiless = request.method() == hyper::Method::HEAD;
    request.into_body().collect().await.map_err(io::Error::other)?;
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>by the fault proxy</Message></Error>"
    );
    let mut response = Response::new(full(if bodiless { Bytes::new() } else { text.into() }));
    *response.status_mut() = StatusCode::from_u16(status).map_err(io::Error::other)?;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    Ok(response)
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn broken_off(part: Bytes) -> Body {
    let end = stream::once(async {
        // What came before is sent while this waits.
        tokio::task::yield_now().await;
        Err(io::Error::other("the connection is cut"))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(stream::iter([Ok(Frame::data(part))]).chain(end))))
}

fn in_two(first: Bytes, wait: Duration, second: Bytes) -> Body {
    let parts = stream::unfold([Some((Duration::ZERO, first)), Some((wait, second))], |mut parts| async {
        let (wait, part) = parts.iter_mut().find_map(Option::take)?;
        tokio::time::sleep(wait).await;
        Some((Ok(Frame::data(part)), parts))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(parts)))
}
