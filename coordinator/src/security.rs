//! Who may call: certificates in the handshake, the token with every call. Refusals are logged without the secret.

use crate::{Error, Result, connections::Guest};
use proto::{Access, token_of};
use sha2::{Digest, Sha256};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};
use tonic::{Request, Status, service::Interceptor};

/// A flood of refusals is a line of the log this often.
const EVERY: Duration = Duration::from_secs(1);

/// Refuses what would let strangers in: off loopback, traffic must be encrypted and callers known, unless
/// `insecure` says otherwise.
pub fn check(listen: SocketAddr, access: &Access, insecure: bool) -> Result<()> {
    if listen.ip().is_loopback() {
        return Ok(());
    }
    let lacks = match (access.identity().is_some(), access.token().is_some() || access.ca().is_some()) {
        (true, true) => return Ok(()),
        (true, false) => {
            "anybody could join the job; give --token-file, or --tls-ca for workers' certificates"
        }
        (false, _) => "traffic would not be encrypted; give --tls-cert and --tls-key",
    };
    if !insecure {
        return Err(Error::Insecure { address: listen, lacks });
    }
    tracing::warn!("listening on {listen} as --insecure asks: {lacks}");
    Ok(())
}

/// The server's side of TLS, where it has a certificate; with an authority, callers must show one that it signed.
pub fn tls(access: &Access) -> Result<Option<TlsAcceptor>> {
    let bad = |why: String| Error::Tls { why };
    let Some((cert, key)) = access.identity() else {
        return match access.ca() {
            Some(_) => Err(bad("--tls-ca is given without --tls-cert and --tls-key".into())),
            None => Ok(None),
        };
    };
    let chain = certificates(cert).map_err(|e| bad(format!("--tls-cert: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(format!("--tls-key: {e}")))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(e.to_string()))?;
    let builder = match access.ca() {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(ca).map_err(|e| bad(format!("--tls-ca: {e}")))? {
                roots.add(root).map_err(|e| bad(format!("--tls-ca: {e}")))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|e| bad(format!("--tls-ca: {e}")))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| bad(format!("--tls-cert: {e}")))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Looks at every call before its message is read.
#[derive(Clone)]
pub struct Gate {
    /// Digest of the token that callers must show.
    token: Option<[u8; 32]>,
    refusals: Arc<Refusals>,
}

impl Gate {
    /// Asks for the token of `access`, where there is one.
    pub fn new(access: &Access) -> Self {
        Self { token: access.token().map(digest), refusals: Arc::default() }
    }

    fn judge(&self, shown: Option<&str>) -> std::result::Result<(), &'static str> {
        match (&self.token, shown) {
            (None, _) => Ok(()),
            (Some(_), None) => Err("it shows no token"),
            (Some(token), Some(shown)) if same(token, &digest(shown)) => Ok(()),
            (Some(_), Some(_)) => Err("its token is not this job's"),
        }
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> std::result::Result<Request<()>, Status> {
        let guest = request.extensions().get::<Guest>();
        match self.judge(token_of(&request)) {
            Ok(()) => {
                if let Some(guest) = guest {
                    guest.admit();
                }
                Ok(request)
            }
            Err(why) => {
                self.refusals.note(guest.map(Guest::peer), why);
                Err(Status::unauthenticated(format!(
                    "the coordinator refuses this call: {why}; give --token-file the file that the coordinator has"
                )))
            }
        }
    }
}

/// Logs refusals, a flood of them as few lines.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Option<(Instant, u64)>>);

impl Refusals {
    /// One more, of `peer`, because of `why`.
    pub fn note(&self, peer: Option<SocketAddr>, why: &str) {
        let now = now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unsaid = match &mut *last {
            Some((at, unsaid)) if now.saturating_duration_since(*at) < EVERY => {
                *unsaid += 1;
                return;
            }
            Some((_, unsaid)) => *unsaid,
            None => 0,
        };
        *last = Some((now, 0));
        let from = peer.map_or("a caller".to_string(), |p| p.to_string());
        match unsaid {
            0 => tracing::warn!("refused {from}: {why}"),
            n => tracing::warn!("refused {from}: {why}; and {n} more since the last such line"),
        }
    }
}

fn certificates(pem: &[u8]) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>();
    let all = all.map_err(|e| e.to_string())?;
    if all.is_empty() { Err("there is no certificate in it".into()) } else { Ok(all) }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// In the same time wherever they differ; of digests, so that nothing is learnt of the length either.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

/// The one reader of the clock here: for the log only.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_jobs_token_passes() {
        let gate = Gate { token: Some(digest("0123456789abcdef")), refusals: Arc::default() };
        assert!(gate.judge(Some("0123456789abcdef")).is_ok());
        for shown in [None, Some(""), Some("0123456789abcdeg"), Some("0123456789abcdef0")] {
            assert!(gate.judge(shown).is_err_and(|why| !why.contains("0123")), "{shown:?}");
        }
        let open = Gate { token: None, refusals: Arc::default() };
        assert!(open.judge(None).is_ok());
    }

    #[test]
    fn off_loopback_needs_encryption_and_acquaintance() {
        let (here, there) = ("127.0.0.1:1".parse().unwrap(), "10.0.0.1:1".parse().unwrap());
        let access = Access::default();
        check(here, &access, false).unwrap();
        check(there, &access, true).unwrap();
        let e = check(there, &access, false).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains("--tls-cert"), "{e}");
    }
}
