//! A token and certificates of one job, as files that its programs are told of.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::{Path, PathBuf};

const TOKEN: &str = "a-token-that-only-this-job-knows";

/// What the programs of a job show each other: a certificate each, of one authority, and the token.
pub struct Credentials {
    folder: PathBuf,
}

impl Credentials {
    /// Writes them into a new folder. All programs are at 127.0.0.1.
    pub fn write(folder: &Path) -> Self {
        let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        std::fs::create_dir_all(folder).expect("a folder");
        put("token", TOKEN);
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        put("ca", &authority.pem());
        for name in ["coordinator", "worker"] {
            let params = CertificateParams::new(vec!["127.0.0.1".into()]).expect("parameters");
            let key = KeyPair::generate().expect("a key");
            put(name, &params.signed_by(&key, &authority).expect("a certificate").pem());
            put(&format!("{name}.key"), &key.serialize_pem());
        }
        Self { folder: folder.into() }
    }

    /// The environment of a `coordinator` or a `worker`.
    pub fn env(&self, of: &str) -> [(&'static str, PathBuf); 4] {
        let file = |name: &str| self.folder.join(name);
        [
            ("MAREY_TOKEN_FILE", file("token")),
            ("MAREY_TLS_CA", file("ca")),
            ("MAREY_TLS_CERT", file(of)),
            ("MAREY_TLS_KEY", file(&format!("{of}.key"))),
        ]
    }
}
