//! Who is let in: the tokens of calls, and TLS for connections. Python reads the files, looks whether they change, and
//! says what a refusal says.

use std::io::{self, Write};
use std::sync::Arc;

use http::{header::AUTHORIZATION, HeaderMap};
use ring::digest::{digest, SHA256, SHA256_OUTPUT_LEN};
use subtle::{Choice, ConstantTimeEq};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection};

/// The SHA-256 of each token that is known.
pub type Digests = Vec<[u8; SHA256_OUTPUT_LEN]>;

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    Silent,
    Unknown,
}

/// Whether a call brings `authorization: Bearer` with one of the tokens.
pub fn check(known: &Digests, headers: &HeaderMap) -> Result<(), Stranger> {
    let presented = headers.get(AUTHORIZATION).ok_or(Stranger::Silent)?.as_bytes();
    let (scheme, token) = match presented.iter().position(|byte| *byte == b' ') {
        Some(at) => (&presented[..at], &presented[at + 1..]),
        None => (presented, &[][..]),
    };
    // Every digest is compared, each in constant time: how long it takes tells nothing of how near a guess was.
    let found = digest(&SHA256, token);
    let is_known = known.iter().fold(Choice::from(0), |found_one, one| found_one | one[..].ct_eq(found.as_ref()));
    if scheme.eq_ignore_ascii_case(b"bearer") && bool::from(is_known) {
        Ok(())
    } else {
        Err(Stranger::Unknown)
    }
}

/// TLS as new connections get it, from files in PEM; what is wrong with them where something is.
pub fn tls(chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<ServerConfig, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let chain = certificates(chain)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| said(&error))?;
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| said(&error))?;
    let builder = if let Some(client_ca) = client_ca {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(client_ca)? {
            roots.add(certificate).map_err(|error| said(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.map_err(|error| said(&error))?)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| said(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// HTTP/2's first frame, without which a client does not take a connection for one: SETTINGS, and none of them.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// The server's side of one handshake, as TLS records that the caller carries to and fro.
pub struct Handshake {
    connection: ServerConnection,
    greeted: bool,
}

impl Handshake {
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let connection = ServerConnection::new(Arc::new(tls(chain, key, None)?)).map_err(|error| error.to_string())?;
        Ok(Self { connection, greeted: false })
    }

    /// What goes to the client after these bytes of its.
    pub fn answer(&mut self, mut received: &[u8]) -> io::Result<Vec<u8>> {
        while !received.is_empty() {
            self.connection.read_tls(&mut received)?;
            self.connection.process_new_packets().map_err(io::Error::other)?;
        }
        if !self.greeted && !self.connection.is_handshaking() {
            self.connection.writer().write_all(&SETTINGS)?;
            self.greeted = true;
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
    use http::HeaderValue;
    use proptest::prelude::*;

    fn known(tokens: &[impl AsRef<str>]) -> Digests {
        tokens.iter().map(|token| digest(&SHA256, token.as_ref().as_bytes()).as_ref().try_into().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn any_header_is_let_in_just_where_its_token_is_known(
            tokens in prop::collection::vec("[!-~]{1,40}", 0..5), scheme in "[Bb]earer|BEARER|Basic", other in "[ -~]{0,40}",
        ) {
            for token in tokens.iter().chain([&other]) {
                let value = HeaderValue::try_from(format!("{scheme} {token}")).unwrap();
                let is_right = scheme.eq_ignore_ascii_case("bearer") && tokens.contains(token);
                let found = check(&known(&tokens), &HeaderMap::from_iter([(AUTHORIZATION, value)]));
                prop_assert_eq!(found.is_ok(), is_right);
            }
        }
    }

    #[test]
    fn only_the_whole_token_under_its_scheme_counts() {
        let known = known(&["first-token-0123456789", "second-token-0123456789"]);
        let asked = |text: &'static str| {
            check(&known, &HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(text))]))
        };
        for right in ["Bearer first-token-0123456789", "bearer second-token-0123456789"] {
            assert_eq!(asked(right), Ok(()), "{right}");
        }
        for wrong in [
            "first-token-0123456789",
            "Basic first-token-0123456789",
            "Bearer first-token-012345678",
            "Bearer first-token-0123456789 ",
            "Bearer  first-token-0123456789",
            "Bearer",
            "Bearer ",
            "",
        ] {
            assert_eq!(asked(wrong), Err(Stranger::Unknown), "{wrong}");
        }
        assert_eq!(check(&known, &HeaderMap::new()), Err(Stranger::Silent));
        assert_eq!(check(&Digests::new(), &HeaderMap::new()), Err(Stranger::Silent));
    }

    #[test]
    fn what_is_no_certificate_is_said_and_not_used() {
        for (chain, key) in [(&b""[..], &b""[..]), (b"nonsense", b"nonsense")] {
            assert!(tls(chain, key, None).is_err());
        }
    }
}
