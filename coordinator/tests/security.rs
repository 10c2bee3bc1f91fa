//! Who gets in: every way of being a stranger, against a real server.
#![allow(clippy::unwrap_used)]

use configs::Config;
use coordinator::{Options, Outcome, Server, Signal};
use proto::{
    Access, AccessArgs, PROTOCOL_VERSION,
    v1::{GetJobRequest, WatchRequest, coordinator_client::CoordinatorClient},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use std::{net::SocketAddr, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

const TOKEN: &str = "a-token-that-only-this-job-knows";

/// A folder with a token, an authority, and certificates of it and of a stranger.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("token", TOKEN);
        files.put("other-token", "a-token-of-quite-another-job");
        for (authority, names) in
            [("ca", ["coordinator", "worker", "expired"]), ("strange-ca", ["stranger"; 3])]
        {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            files.put(authority, &ca.pem());
            for name in names {
                let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
                if name == "expired" {
                    params.not_before = date_time_ymd(2020, 1, 1);
                    params.not_after = date_time_ymd(2021, 1, 1);
                }
                let key = KeyPair::generate().unwrap();
                files.put(name, &params.signed_by(&key, &ca).unwrap().pem());
                files.put(&format!("{name}.key"), &key.serialize_pem());
            }
        }
        files
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    /// Each: the file's name, or empty for none.
    fn access(&self, token: &str, certificate: &str, ca: &str) -> Access {
        let path = |name: &str| (!name.is_empty()).then(|| self.0.path().join(name));
        let key = if certificate.is_empty() { String::new() } else { format!("{certificate}.key") };
        let (token_file, tls_cert, tls_key, tls_ca) = (path(token), path(certificate), path(&key), path(ca));
        AccessArgs { token_file, tls_cert, tls_key, tls_ca }.read().unwrap()
    }
}

/// A coordinator that waits for workers.
struct Running {
    address: SocketAddr,
    signals: mpsc::UnboundedSender<Signal>,
    ended: JoinHandle<coordinator::Result<Outcome>>,
    _dir: TempDir,
}

impl Running {
    async fn start(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dataset.json"), "{}").unwrap();
        let data = format!("data.url={}", dir.path().display());
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo.toml");
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            run: dir.path().join("run").display().to_string(),
            config: Config::read(&demo, &[data]).unwrap(),
            access,
            insecure: false,
            single_writer: false,
            advertise: None,
            take_over: false,
        };
        let server = Server::bind(options).await.unwrap();
        let address = server.address();
        let (signals, caught) = mpsc::unbounded_channel();
        let ended = tokio::spawn(server.run(UnboundedReceiverStream::new(caught)));
        Self { address, signals, ended, _dir: dir }
    }

    /// What the coordinator answers to a caller: its job, or why not.
    async fn ask(&self, access: &Access) -> Result<(), tonic::Status> {
        let connection = access.connection(&self.address.to_string()).unwrap();
        let request = GetJobRequest { protocol_version: PROTOCOL_VERSION };
        CoordinatorClient::new(connection).get_job(request).await.map(drop)
    }

    async fn end(self) {
        self.signals.send(Signal::Stop).unwrap();
        self.ended.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_token_opens_and_nothing_else_does() {
    let files = Files::new();
    let server = Running::start(files.access("token", "", "")).await;
    server.ask(&files.access("token", "", "")).await.unwrap();
    for stranger in ["", "other-token"] {
        let refused = server.ask(&files.access(stranger, "", "")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(
            refused.message().contains("--token-file") && !refused.message().contains(TOKEN),
            "{refused}"
        );
    }
    // Streams are calls too, and so are the store's.
    let none = Access::default().connection(&server.address.to_string()).unwrap();
    let refused = CoordinatorClient::new(none.clone()).watch(WatchRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let key = proto::v1::SetRequest { key: "g1/a".into(), value: vec![] };
    let refused = proto::v1::store_client::StoreClient::new(none).set(key).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    server.end().await;
}

#[tokio::test]
async fn certificates_must_be_good_on_both_ends() {
    let files = Files::new();
    let server = Running::start(files.access("", "coordinator", "ca")).await;
    server.ask(&files.access("", "worker", "ca")).await.unwrap();
    for (certificate, ca) in [("", "ca"), ("expired", "ca"), ("stranger", "ca"), ("worker", "strange-ca")] {
        let refused = server.ask(&files.access("", certificate, ca)).await.unwrap_err();
        let broken = matches!(refused.code(), Code::Unavailable | Code::Unknown);
        assert!(broken, "{certificate} {ca}: it must not come as far as a call: {refused}");
    }
    // A plain client.
    assert!(server.ask(&Access::default()).await.is_err());
    server.ask(&files.access("", "worker", "ca")).await.unwrap();
    server.end().await;

    // An expired coordinator is nobody's coordinator; one with a token asks for it behind the handshake.
    let server = Running::start(files.access("token", "expired", "")).await;
    assert!(server.ask(&files.access("token", "", "ca")).await.is_err());
    server.end().await;
    let server = Running::start(files.access("token", "coordinator", "")).await;
    assert_eq!(server.ask(&files.access("", "", "ca")).await.unwrap_err().code(), Code::Unauthenticated);
    server.ask(&files.access("token", "", "ca")).await.unwrap();
    server.end().await;
}

#[tokio::test]
async fn garbage_floods_and_silence_shut_nobody_out() {
    let files = Files::new();
    let server = Running::start(files.access("token", "", "")).await;
    let friend = files.access("token", "", "").connection(&server.address.to_string()).unwrap();
    let request = || GetJobRequest { protocol_version: PROTOCOL_VERSION };
    CoordinatorClient::new(friend.clone()).get_job(request()).await.unwrap();

    let garbage: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut silent = vec![];
    for i in 0..600 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        if i % 3 == 0 {
            // The server may well hang up in the middle of it.
            let _ = stream.write_all(&garbage).await;
        } else {
            silent.push(stream);
        }
    }
    // The first of the silent had to make room for the last.
    let mut first = silent.swap_remove(0);
    let mut said = vec![];
    let end = tokio::time::timeout(Duration::from_secs(8), first.read_to_end(&mut said)).await;
    assert!(end.is_ok(), "it was shown out long before its time");
    CoordinatorClient::new(friend).get_job(request()).await.unwrap();
    server.ask(&files.access("token", "", "")).await.unwrap();
    server.end().await;
}
