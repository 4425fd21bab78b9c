//! TLS 1.3 with bare keys (RFC 7250): a node is known by its Ed25519 key, and by nothing else.
//!
//! What always holds: a connection is made only to the key that was asked for, and taken only from a key that the guard
//! lets in; both sides have proved that the key is theirs. There is no early data, which could be played again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use phifs_core::identity::{NodeKey, NodePublicKey};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};

use crate::node_key::NodeSeed;

/// The protocol with its major version: others do not even connect.
const ALPN: &[u8] = b"ssep/1";
/// What stands before the 32 bytes of an Ed25519 key, public and secret (RFC 8410).
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const SECRET_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A peer is asked for nothing when it is silent for so long.
const IDLE_MAX: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// What one peer may have under way, and may make us hold for it: bytes that came and were not looked at yet.
pub const STREAMS_MAX: u8 = 32;
const STREAM_BYTES_MAX: u32 = 4 << 20;
const PEER_BYTES_MAX: u32 = 16 << 20;

/// Who may connect.
pub trait Guard: Send + Sync + 'static {
    fn lets_in(&self, key: NodePublicKey) -> bool;
}

/// This node, to its peers.
#[derive(Clone)]
pub struct Identity {
    pub node: NodePublicKey,
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl Identity {
    pub fn new(seed: &NodeSeed) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from([&SECRET_PREFIX[..], &seed.0].concat()));
        let key = provider.key_provider.load_private_key(secret)?;
        let public = key.public_key().ok_or_else(|| Error::General("the node key has no public half".into()))?.to_vec();
        let node = NodeKey::from_seed(&seed.0).public();
        Ok(Self { node, provider, key: Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], key)) })
    }

    /// To take connections.
    pub fn server(&self, guard: Arc<dyn Guard>) -> Result<quinn::ServerConfig, Error> {
        let verifier = Arc::new(Verifier::new(Allowed::Guarded(guard), &self.provider));
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // It would let a peer back in without a look at its key.
        config.send_tls13_tickets = 0;
        let crypto = QuicServerConfig::try_from(config).map_err(|error| Error::General(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(transport());
        Ok(config)
    }

    /// To connect to this peer.
    pub fn client(&self, peer: NodePublicKey) -> Result<quinn::ClientConfig, Error> {
        let verifier = Arc::new(Verifier::new(Allowed::Only(peer), &self.provider));
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        let crypto = QuicClientConfig::try_from(config).map_err(|error| Error::General(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport());
        Ok(config)
    }
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(IDLE_MAX.try_into().expect("a few seconds")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0_u8.into())
        .datagram_receive_buffer_size(None)
        .receive_window(PEER_BYTES_MAX.into())
        .stream_receive_window(STREAM_BYTES_MAX.into());
    Arc::new(transport)
}

/// Who is at the other end.
pub fn peer_of(connection: &quinn::Connection) -> Option<NodePublicKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    key_in(chain.first()?)
}

fn key_in(certificate: &CertificateDer<'_>) -> Option<NodePublicKey> {
    Some(NodePublicKey(certificate.strip_prefix(&PUBLIC_PREFIX)?.try_into().ok()?))
}

enum Allowed {
    Only(NodePublicKey),
    Guarded(Arc<dyn Guard>),
}

struct Verifier {
    allowed: Allowed,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(allowed: Allowed, provider: &CryptoProvider) -> Self {
        Self { allowed, algorithms: provider.signature_verification_algorithms }
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let is_allowed = key_in(certificate).is_some_and(|key| match &self.allowed {
            Allowed::Only(peer) => key == *peer,
            Allowed::Guarded(guard) => guard.lets_in(key),
        });
        let refused = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        if is_allowed { Ok(()) } else { Err(refused) }
    }

    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

fn tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
