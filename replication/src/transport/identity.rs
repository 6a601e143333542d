//! Who a node is: a certificate made for the run, which binds the node's id, and the TLS configurations that check it.
//!
//! Whoever starts a run makes one [`Authority`], issues one [`Identity`] per node and hands it over (over the node's
//! stdin); the authority's key never leaves its process. Both ends of a connection prove themselves (TLS 1.3, ring).
//! A dialling node wants the name of exactly one node; an accepting node looks up whose name the certificate bears.
//!
//! A node's private key also seeds what must outlive its process without being stored anywhere: the key of its
//! stateless resets ([`Identity::derive_key`]).
//!
//! This module knows no socket and no address. It deliberately ignores clocks: boards come up in 1970, and a run's
//! certificates are useless after the run because its authority's key is gone, not because a date has passed.

use std::fmt;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use serde::{Deserialize, Serialize};

use super::{Lane, frame};
use crate::store::NodeId;

/// The id in the certificate of those who use a cluster from outside: clients. They share it, because they are told apart
/// by what they say, not by who they are; no node has it.
pub const GUEST: NodeId = NodeId(u64::MAX);

/// Which traffic an endpoint carries; endpoints of different planes refuse each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// Federated learning.
    Learning,
    /// Election and replication.
    Replication,
}

impl Plane {
    /// The application protocol of a connection: plane, wire version and lane, for example
    /// `checkpoint-replication/1/bulk`.
    #[must_use]
    pub fn protocol(self, lane: Lane) -> Vec<u8> {
        let plane = match self {
            Self::Learning => "learning",
            Self::Replication => "replication",
        };
        let lane = match lane {
            Lane::Control => "control",
            Lane::Bulk => "bulk",
        };
        format!("checkpoint-{plane}/{}/{lane}", frame::VERSION).into_bytes()
    }
}

/// Why an identity cannot be made or used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// A key or certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes")]
    NoRandomness,
    /// The PEM text of an identity does not parse.
    #[error("the {part} of node {node}'s identity is not valid PEM: {reason}")]
    Pem {
        /// Whose identity.
        node: NodeId,
        /// Which part.
        part: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// The TLS library refuses the identity.
    #[error("node {node}'s identity cannot be used: {reason}")]
    Unusable {
        /// Whose identity.
        node: NodeId,
        /// The library's words.
        reason: String,
    },
}

/// Longest run name kept in certificates; names are for people, the authority's key is what tells runs apart.
const MAX_RUN_LABEL_BYTES: usize = 40;

/// The certificate authority of one run.
pub struct Authority {
    domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a fresh key. `run_name` becomes a DNS label: other characters turn into `-`.
    ///
    /// # Errors
    /// [`IdentityError::Make`].
    pub fn new(run_name: &str) -> Result<Self, IdentityError> {
        let domain = dns_label(run_name);
        let mut params = lasting(CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, format!("authority of {domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self { domain, issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// A certificate and key for `node`.
    ///
    /// # Errors
    /// [`IdentityError::Make`].
    pub fn issue(&self, node: NodeId) -> Result<Identity, IdentityError> {
        let name = dns_name(node, &self.domain);
        let mut params = lasting(CertificateParams::new(vec![name.clone()])?);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            node,
            domain: self.domain.clone(),
            authority_pem: self.issuer.pem(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// Valid whatever a board without a battery-backed clock believes.
fn lasting(mut params: CertificateParams) -> CertificateParams {
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(2999, 12, 31);
    params
}

fn dns_label(name: &str) -> String {
    let label: String = name
        .chars()
        .take(MAX_RUN_LABEL_BYTES)
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    match label.trim_matches('-') {
        "" => "run".into(),
        label => label.into(),
    }
}

fn dns_name(node: NodeId, domain: &str) -> String {
    format!("node-{node}.{domain}")
}

/// What a node needs to prove who it is and to check others. Serialisable, **with its private key**.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    node: NodeId,
    domain: String,
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Identity {
    /// Whose identity it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The name in the certificate, for example `node-3.trial-7`.
    #[must_use]
    pub fn name(&self) -> String {
        self.name_of(self.node)
    }

    /// The name in `node`'s certificate.
    #[must_use]
    pub fn name_of(&self, node: NodeId) -> String {
        dns_name(node, &self.domain)
    }

    /// A secret that only this identity can compute, the same after a restart. `purpose` tells secrets apart.
    #[must_use]
    pub fn derive_key(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, self.key_pem.as_bytes())
    }

    /// Which of `candidates` a **verified** peer certificate was issued to.
    #[must_use]
    pub fn whose(&self, certificate: &CertificateDer<'_>, candidates: &[NodeId]) -> Option<NodeId> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        candidates.iter().copied().find(|node| {
            ServerName::try_from(self.name_of(*node))
                .is_ok_and(|name| rustls::client::verify_server_name(&parsed, &name).is_ok())
        })
    }

    /// TLS for accepted connections, of both lanes of `plane`: the peer must have a certificate of the same run.
    ///
    /// # Errors
    /// [`IdentityError::Pem`] or [`IdentityError::Unusable`].
    pub fn server_config(&self, plane: Plane) -> Result<rustls::ServerConfig, IdentityError> {
        self.server(vec![plane.protocol(Lane::Control), plane.protocol(Lane::Bulk)])
    }

    /// TLS for accepted lifelines.
    pub(crate) fn lifeline_server(&self) -> Result<rustls::ServerConfig, IdentityError> {
        self.server(vec![lifeline_protocol()])
    }

    /// TLS for lifelines that this node has made.
    pub(crate) fn lifeline_client(&self) -> Result<rustls::ClientConfig, IdentityError> {
        self.client(lifeline_protocol())
    }

    fn server(&self, protocols: Vec<Vec<u8>>) -> Result<rustls::ServerConfig, IdentityError> {
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?.into(), provider.clone())
            .build()
            .map_err(|error| self.unusable(error))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| self.unusable(error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.certificates()?, self.private_key()?)
            .map_err(|error| self.unusable(error))?;
        config.alpn_protocols = protocols;
        // Connections last; a ticket would only cost bytes.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// TLS for dialled connections of one lane: the peer must have a certificate of the same run, with the name that
    /// was dialled.
    ///
    /// # Errors
    /// [`IdentityError::Pem`] or [`IdentityError::Unusable`].
    pub fn client_config(&self, plane: Plane, lane: Lane) -> Result<rustls::ClientConfig, IdentityError> {
        self.client(plane.protocol(lane))
    }

    fn client(&self, protocol: Vec<u8>) -> Result<rustls::ClientConfig, IdentityError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| self.unusable(error))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.certificates()?, self.private_key()?)
            .map_err(|error| self.unusable(error))?;
        config.alpn_protocols = vec![protocol];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn roots(&self) -> Result<rustls::RootCertStore, IdentityError> {
        let authority = CertificateDer::from_pem_slice(self.authority_pem.as_bytes())
            .map_err(|error| self.bad_pem("authority", error))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).map_err(|error| self.unusable(error))?;
        Ok(roots)
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .map(|certificate| vec![certificate])
            .map_err(|error| self.bad_pem("certificate", error))
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| self.bad_pem("key", error))
    }

    fn bad_pem(&self, part: &'static str, error: rustls::pki_types::pem::Error) -> IdentityError {
        IdentityError::Pem { node: self.node, part, reason: error.to_string() }
    }

    fn unusable(&self, error: impl fmt::Display) -> IdentityError {
        IdentityError::Unusable { node: self.node, reason: error.to_string() }
    }
}

/// The application protocol of a lifeline.
fn lifeline_protocol() -> Vec<u8> {
    format!("checkpoint-replication/{}/lifeline", frame::VERSION).into_bytes()
}

/// The cryptography of every connection; never the process-wide default, which is not ours to set.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Fills `bytes` with randomness from the operating system.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), IdentityError> {
    provider().secure_random.fill(bytes).map_err(|_| IdentityError::NoRandomness)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_its_node_and_no_other() {
        let authority = Authority::new("Trial 7/x").unwrap();
        let identity = authority.issue(NodeId(3)).unwrap();
        assert_eq!(identity.name(), "node-3.trial-7-x");
        let certificate = identity.certificates().unwrap().remove(0);
        let nodes = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
        assert_eq!(identity.whose(&certificate, &nodes(&[1, 2, 3, 30])), Some(NodeId(3)));
        assert_eq!(identity.whose(&certificate, &nodes(&[1, 2, 30, 33])), None);
    }

    #[test]
    fn an_identity_survives_its_way_to_the_node() {
        let identity = Authority::new("run").unwrap().issue(NodeId(1)).unwrap();
        let text = postcard::to_allocvec(&identity).unwrap();
        let copy: Identity = postcard::from_bytes(&text).unwrap();
        assert!(copy.server_config(Plane::Replication).is_ok());
        assert!(copy.client_config(Plane::Learning, Lane::Bulk).is_ok());
        assert_eq!(copy.derive_key("a"), identity.derive_key("a"));
        assert_ne!(copy.derive_key("a"), identity.derive_key("b"));
    }

    #[test]
    fn debug_output_has_no_key() {
        let identity = Authority::new("run").unwrap().issue(NodeId(1)).unwrap();
        let text = format!("{identity:?}");
        assert!(text.contains("node-1.run") && !text.contains("KEY") && text.len() < 80, "{text}");
    }

    #[test]
    fn garbage_is_an_error() {
        let mut identity = Authority::new("run").unwrap().issue(NodeId(1)).unwrap();
        identity.key_pem = "no key".into();
        assert!(matches!(
            identity.server_config(Plane::Learning),
            Err(IdentityError::Pem { part: "key", .. })
        ));
    }
}
