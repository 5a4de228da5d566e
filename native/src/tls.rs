//! The TLS configuration of connections, and a handshake that verifies one before it takes effect.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection};

/// Builds the configuration from PEM files; the error has the problem.
pub fn server_config(chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<ServerConfig, String> {
    let chain = parse_certificates(chain)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(message)?;
    let provider = Arc::new(default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(message)?;
    let builder = match client_ca {
        Some(client_ca) => builder.with_client_cert_verifier(client_verifier(client_ca, provider)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(message)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn client_verifier(client_ca: &[u8], provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in parse_certificates(client_ca)? {
        roots.add(certificate).map_err(message)?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(message)
}

fn parse_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(message)
}

#[allow(clippy::needless_pass_by_value)] // the signature that `map_err` expects
fn message(error: impl Display) -> String {
    error.to_string()
}

/// An empty SETTINGS frame. A client takes a connection for HTTP/2 only after it.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// The server's side of one handshake, as TLS records that Python carries between it and a client.
pub struct Handshake {
    connection: ServerConnection,
    has_sent_settings: bool,
}

impl Handshake {
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let connection = ServerConnection::new(Arc::new(server_config(chain, key, None)?)).map_err(message)?;
        Ok(Self { connection, has_sent_settings: false })
    }

    /// Returns the bytes to send to the client after these were received.
    pub fn process(&mut self, mut received: &[u8]) -> io::Result<Vec<u8>> {
        while !received.is_empty() {
            self.connection.read_tls(&mut received)?;
            self.connection.process_new_packets().map_err(io::Error::other)?;
        }
        if !self.has_sent_settings && !self.connection.is_handshaking() {
            self.connection.writer().write_all(&SETTINGS)?;
            self.has_sent_settings = true;
        }
        let mut sent = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut sent)?;
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_certificate_are_an_error() {
        for (chain, key) in [(&b""[..], &b""[..]), (b"nonsense", b"nonsense")] {
            assert!(server_config(chain, key, None).is_err());
        }
    }
}
