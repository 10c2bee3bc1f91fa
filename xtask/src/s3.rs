//! A real S3 server (SeaweedFS) on fresh local ports, for the demo and the end-to-end tests.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

const ACCESS_KEY: &str = "marey";
const SECRET_KEY: &str = "marey-local-only";
/// The slowest start allowed; 3 seconds is usual.
const PATIENCE: Duration = Duration::from_secs(60);
/// Holds the server's life: when the pipe on its standard input closes, which happens however
/// the parent ends, the server is killed.
const KEEPER: &str = "\"$@\" & server=$!; cat >/dev/null; kill -9 $server; wait $server 2>/dev/null";

/// A running server. Dropping it, or the death of this process, stops it.
pub struct Server {
    keeper: Child,
    s3: u16,
}

impl Server {
    /// Starts a server that keeps its data below `folder` and makes one empty `bucket`.
    /// Buckets that are missing are not made by uploads.
    pub fn start(folder: &Path, bucket: &str) -> Result<Self> {
        let weed = weed()?;
        fs::create_dir_all(folder.join("data"))
            .with_context(|| format!("make a folder for the S3 server, {}", folder.display()))?;
        let identities = folder.join("identities.json");
        fs::write(&identities, identities_json()).context("write the S3 server's identities")?;
        // Somebody else may take a port between our look and the server's start: then try others.
        let mut last = None;
        for _ in 0..3 {
            match Self::attempt(&weed, folder, &identities, bucket) {
                Ok(server) => return Ok(server),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("start the S3 server")))
    }

    fn attempt(weed: &Path, folder: &Path, identities: &Path, bucket: &str) -> Result<Self> {
        let ports = fresh_ports::<8>()?;
        let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc] = ports;
        let log_path = folder.join("server.log");
        let log = File::create(&log_path).context("make the S3 server's log")?;
        // Unix socket paths are short, and the server's default ones are shared by all servers.
        let sockets = [
            format!("/tmp/marey-filer-{}-{filer}.sock", std::process::id()),
            format!("/tmp/marey-s3-{}-{s3}.sock", std::process::id()),
        ];
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(weed).arg("server").arg("-s3");
        command.arg("-dir").arg(folder.join("data")).arg("-s3.config").arg(identities);
        command.args(["-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-master.telemetry=false"]);
        command.args(["-s3.autoCreateBucket=false", "-s3.iam=false"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=64"]);
        command.arg("-master.volumeSizeLimitMB=1024");
        for (name, port) in [
            ("master.port", master),
            ("master.port.grpc", master_grpc),
            ("volume.port", volume),
            ("volume.port.grpc", volume_grpc),
            ("filer.port", filer),
            ("filer.port.grpc", filer_grpc),
            ("s3.port", s3),
            ("s3.port.grpc", s3_grpc),
        ] {
            command.arg(format!("-{name}={port}"));
        }
        command.arg(format!("-filer.localSocket={}", sockets[0]));
        command.arg(format!("-s3.localSocket={}", sockets[1]));
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let keeper = command.spawn().context("start the S3 server")?;
        let server = Self { keeper, s3 };
        let ready = server.wait_ready(filer, bucket);
        ready.with_context(|| format!("start the S3 server (its log: {})", log_path.display()))?;
        Ok(server)
    }

    /// Waits until S3 answers, then makes the bucket through the filer, and waits until S3 knows it.
    fn wait_ready(&self, filer: u16, bucket: &str) -> Result<()> {
        let deadline = crate::now() + PATIENCE;
        let mut made = false;
        loop {
            // 403: S3 is up and refuses an unsigned request, as it should.
            if matches!(http(self.s3, "GET", "/"), Ok(403)) {
                if !made {
                    let status = http(filer, "POST", &format!("/buckets/{bucket}/"));
                    made = matches!(status, Ok(200..=299));
                } else {
                    return Ok(());
                }
            }
            ensure!(crate::now() < deadline, "see it answer within {PATIENCE:?}");
            sleep(Duration::from_millis(50));
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.s3)
    }

    /// The variables with which any AWS client reaches this server.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn weed() -> Result<PathBuf> {
    let path = crate::cache().join("seaweedfs/bin/weed");
    ensure!(path.exists(), "find SeaweedFS at {}; run `make setup`", path.display());
    Ok(path)
}

fn identities_json() -> String {
    serde_json::json!({ "identities": [{
        "name": "marey",
        "credentials": [{ "accessKey": ACCESS_KEY, "secretKey": SECRET_KEY }],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }] })
    .to_string()
}

/// Ports that nobody listens on now.
fn fresh_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = vec![];
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// The status of a bodiless HTTP request to a local port.
fn http(port: u16, method: &str, path: &str) -> Result<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    match std::str::from_utf8(&head).ok().and_then(|h| h.strip_prefix("HTTP/1.1 ")) {
        Some(code) => Ok(code.parse()?),
        None => bail!("read an HTTP status from {address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_refuses_strangers_and_stops() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), "marey").unwrap();
        assert_eq!(http(server.s3, "GET", "/marey").unwrap(), 403);
        let port = server.s3;
        drop(server);
        assert!(http(port, "GET", "/").is_err());
    }
}
