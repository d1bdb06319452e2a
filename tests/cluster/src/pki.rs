//! The cluster's certificates, and kubeconfigs with them.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// The cluster's certificate authority, and the directory with everything that it signed.
pub(super) struct Pki {
    directory: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// The subject of a certificate.
pub(super) struct Subject<'a> {
    /// The user name in Kubernetes.
    pub(super) name: &'a str,
    /// The group in Kubernetes.
    pub(super) group: Option<&'a str>,
    /// The names and addresses of a server.
    pub(super) serves: &'a [String],
}

impl Pki {
    /// Creates an authority, and the keys that sign service accounts' tokens.
    pub(super) fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "ebbtide-tests");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)
            .context("making the certificate authority")?;
        let pki = Self {
            directory,
            authority,
        };
        pki.write("ca.crt", &pki.authority.pem())?;
        pki.write("ca.key", &pki.authority.key().serialize_pem())?;
        let accounts = KeyPair::generate()?;
        pki.write("sa.key", &accounts.serialize_pem())?;
        pki.write("sa.pub", &accounts.public_key_pem())?;
        Ok(pki)
    }

    /// Signs a certificate into `FILE.crt`, with its key in `FILE.key`.
    pub(super) fn sign(&self, file: &str, subject: &Subject<'_>) -> Result<()> {
        let mut params = CertificateParams::new(subject.serves)
            .with_context(|| format!("the names {:?}", subject.serves))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(group) = subject.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params
            .signed_by(&key, &self.authority)
            .with_context(|| format!("signing the certificate of {}", subject.name))?;
        self.write(&format!("{file}.crt"), &certificate.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())
    }

    /// Returns the path of the file `name`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Signs a certificate for `subject` and writes a kubeconfig with it: `FILE.kubeconfig`.
    pub(super) fn kubeconfig(
        &self,
        file: &str,
        subject: &Subject<'_>,
        server: &str,
    ) -> Result<PathBuf> {
        self.sign(file, subject)?;
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": server, "certificate-authority": self.file("ca.crt"),
            }}],
            "users": [{"name": file, "user": {
                "client-certificate": self.file(&format!("{file}.crt")),
                "client-key": self.file(&format!("{file}.key")),
            }}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": file}}],
            "current-context": "test",
        });
        let name = format!("{file}.kubeconfig");
        self.write(&name, &config.to_string())?;
        Ok(self.file(&name))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        write(&path, text)
    }
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Returns the names of an API server at `addresses`, whose Services have this network.
pub(super) fn api_server_names(addresses: &[IpAddr], service: IpAddr) -> Vec<String> {
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    addresses
        .iter()
        .chain([&service])
        .map(IpAddr::to_string)
        .chain(names.map(str::to_owned))
        .collect()
}
