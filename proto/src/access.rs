//! Who may speak to whom: the job's token, TLS certificates, or both. The same files serve on both ends.

use std::{fmt, path::Path, path::PathBuf};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// The metadata key of the token.
const HEADER: &str = "authorization";
/// Shorter ones can be guessed.
const SHORTEST_TOKEN: usize = 16;

/// A channel that shows the token with every call.
pub type Connection = InterceptedService<Channel, ShowToken>;

/// Where token and certificates are.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AccessArgs {
    /// File with the job's token, at least 16 characters; the same for every program of the job
    #[arg(long, value_name = "FILE", env = "MAREY_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// This program's certificate, PEM
    #[arg(long, value_name = "FILE", env = "MAREY_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM
    #[arg(long, value_name = "FILE", env = "MAREY_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The authority whose certificates the other side must show, PEM; a coordinator asks workers for one
    #[arg(long, value_name = "FILE", env = "MAREY_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
}

/// The contents of those files. Shows no secret when printed.
#[derive(Clone, Default)]
pub struct Access {
    token: Option<String>,
    /// Certificate chain and private key, PEM.
    identity: Option<(Vec<u8>, Vec<u8>)>,
    ca: Option<Vec<u8>>,
}

/// Adds the token, where there is one.
#[derive(Clone)]
pub struct ShowToken(Option<MetadataValue<Ascii>>);

/// What is wrong with a file or an address. Completes "failed to ...".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    #[error("read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("use the token in {}: {why}", path.display())]
    Token { path: PathBuf, why: &'static str },
    #[error("understand the coordinator's address {address:?}: {why}; write host:port")]
    Address { address: String, why: String },
}

impl AccessArgs {
    /// Reads and checks the files.
    pub fn read(&self) -> Result<Access, AccessError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| AccessError::Io { path: path.into(), source });
        let token = self.token_file.as_deref().map(|path| parse_token(path, &read(path)?)).transpose()?;
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(Access { token, identity, ca: self.tls_ca.as_deref().map(read).transpose()? })
    }

    /// As a command line that another program understands.
    pub fn to_args(&self) -> Vec<String> {
        [
            ("--token-file", &self.token_file),
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--tls-ca", &self.tls_ca),
        ]
        .into_iter()
        .filter_map(|(name, path)| Some([name.into(), path.as_ref()?.display().to_string()]))
        .flatten()
        .collect()
    }
}

impl Access {
    /// The token, which no message may show.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Certificate chain and private key, PEM.
    pub fn identity(&self) -> Option<(&[u8], &[u8])> {
        self.identity.as_ref().map(|(cert, key)| (&cert[..], &key[..]))
    }

    /// The authority's certificates, PEM.
    pub fn ca(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }

    /// An endpoint for `address` (`host:port`), with keep-alive, and with TLS where an authority is given.
    ///
    /// # Errors
    /// An address that is none, or whose `http://` or `https://` contradicts that.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, AccessError> {
        let bad = |why: String| AccessError::Address { address: address.into(), why };
        let url = match (address.split_once("://"), &self.ca) {
            (None, None) => format!("http://{address}"),
            (None, Some(_)) => format!("https://{address}"),
            (Some(("https", _)), None) => {
                return Err(bad("TLS needs the coordinator's authority, --tls-ca".into()));
            }
            (Some(("http", _)), Some(_)) => return Err(bad("with --tls-ca it cannot be http://".into())),
            _ => address.to_string(),
        };
        let mut endpoint = Endpoint::from_shared(url)
            .map_err(|e| bad(e.to_string()))?
            .connect_timeout(crate::KEEPALIVE_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(crate::KEEPALIVE_EVERY)
            .keep_alive_timeout(crate::KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if let Some(ca) = &self.ca {
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((cert, key)) = &self.identity {
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            endpoint = endpoint.tls_config(tls).map_err(|e| bad(chain(&e)))?;
        }
        Ok(endpoint)
    }

    /// A lazy connection to the coordinator at `address`: it is made with the first call.
    pub fn connection(&self, address: &str) -> Result<Connection, AccessError> {
        Ok(self.over(self.endpoint(address)?.connect_lazy()))
    }

    /// Shows the token over `channel`.
    pub fn over(&self, channel: Channel) -> Connection {
        let bearer = self.token.as_ref().and_then(|t| format!("Bearer {t}").parse().ok());
        InterceptedService::new(channel, ShowToken(bearer))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("token", &self.token.is_some())
            .field("identity", &self.identity.is_some())
            .field("ca", &self.ca.is_some())
            .finish()
    }
}

impl fmt::Debug for ShowToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShowToken({})", self.0.is_some())
    }
}

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(HEADER, token.clone());
        }
        Ok(request)
    }
}

/// The token that a call shows.
pub fn token_of<T>(request: &Request<T>) -> Option<&str> {
    request.metadata().get(HEADER)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn parse_token(path: &Path, bytes: &[u8]) -> Result<String, AccessError> {
    let bad = |why| AccessError::Token { path: path.into(), why };
    let text = std::str::from_utf8(bytes).map_err(|_| bad("it is no text"))?.trim();
    if text.len() < SHORTEST_TOKEN {
        return Err(bad("it has fewer than 16 characters; make one with `openssl rand -hex 32`"));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad("it must be one line of visible ASCII characters without spaces"));
    }
    Ok(text.into())
}

/// An error and its causes in one line.
pub fn chain(e: &dyn std::error::Error) -> String {
    std::iter::successors(e.source(), |e| e.source()).fold(e.to_string(), |text, e| format!("{text}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_long_word_and_is_never_shown() {
        let parse = |text: &str| parse_token(Path::new("t"), text.as_bytes());
        let token = parse("0123456789abcdef\n").unwrap();
        assert_eq!(token, "0123456789abcdef");
        for bad in ["short", "0123456789 abcdef0", "0123456789abcdef\nsecond-line", "0123456789abcdéé"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let access = Access { token: Some(token), ..Default::default() };
        assert_eq!(format!("{access:?}"), "Access { token: true, identity: false, ca: false }");
        let mut request = Request::new(());
        assert_eq!(token_of(&request), None);
        request.metadata_mut().insert(HEADER, "Bearer 0123456789abcdef".parse().unwrap());
        assert_eq!(token_of(&request), access.token());
    }

    #[test]
    fn addresses_that_contradict_the_files_are_refused() {
        let plain = Access::default();
        assert_eq!(plain.endpoint("host:7").unwrap().uri().to_string(), "http://host:7/");
        for address in ["https://host:7", "host:7:8 9"] {
            let e = plain.endpoint(address).unwrap_err().to_string();
            assert!(e.contains(address) && e.contains("write host:port"), "{e}");
        }
    }
}
