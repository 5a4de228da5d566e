//! Authentication of calls by bearer token. Python reads the token file and watches it for changes.

use http::{header::AUTHORIZATION, HeaderMap};
use ring::digest::{digest, SHA256, SHA256_OUTPUT_LEN};
use subtle::{Choice, ConstantTimeEq};

/// The SHA-256 digest of each valid token.
pub type TokenDigests = Vec<[u8; SHA256_OUTPUT_LEN]>;

/// Why a call is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    MissingToken,
    InvalidToken,
}

/// Checks that the call has the header `authorization: Bearer TOKEN` with a valid token.
pub fn authenticate(valid: &TokenDigests, headers: &HeaderMap) -> Result<(), AuthError> {
    let credentials = headers.get(AUTHORIZATION).ok_or(AuthError::MissingToken)?.as_bytes();
    let (scheme, token) = match credentials.iter().position(|byte| *byte == b' ') {
        Some(at) => (&credentials[..at], &credentials[at + 1..]),
        None => (credentials, &[][..]),
    };
    // Compares every digest, each in constant time: the time taken does not depend on how much of a guess is right.
    let presented = digest(&SHA256, token);
    let is_valid = valid.iter().fold(Choice::from(0), |any, one| any | one[..].ct_eq(presented.as_ref()));
    if scheme.eq_ignore_ascii_case(b"bearer") && bool::from(is_valid) {
        Ok(())
    } else {
        Err(AuthError::InvalidToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn digests(tokens: &[impl AsRef<str>]) -> TokenDigests {
        tokens.iter().map(|token| digest(&SHA256, token.as_ref().as_bytes()).as_ref().try_into().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn a_header_is_accepted_if_and_only_if_its_token_is_valid(
            tokens in prop::collection::vec("[!-~]{1,40}", 0..5), scheme in "[Bb]earer|BEARER|Basic", other in "[ -~]{0,40}",
        ) {
            for token in tokens.iter().chain([&other]) {
                let value = HeaderValue::try_from(format!("{scheme} {token}")).unwrap();
                let is_valid = scheme.eq_ignore_ascii_case("bearer") && tokens.contains(token);
                let result = authenticate(&digests(&tokens), &HeaderMap::from_iter([(AUTHORIZATION, value)]));
                prop_assert_eq!(result.is_ok(), is_valid);
            }
        }
    }

    #[test]
    fn only_a_whole_token_under_the_bearer_scheme_is_valid() {
        let valid = digests(&["first-token-0123456789", "second-token-0123456789"]);
        let authenticate_with = |text: &'static str| {
            authenticate(&valid, &HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(text))]))
        };
        for right in ["Bearer first-token-0123456789", "bearer second-token-0123456789"] {
            assert_eq!(authenticate_with(right), Ok(()), "{right}");
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
            assert_eq!(authenticate_with(wrong), Err(AuthError::InvalidToken), "{wrong}");
        }
        assert_eq!(authenticate(&valid, &HeaderMap::new()), Err(AuthError::MissingToken));
        assert_eq!(authenticate(&TokenDigests::new(), &HeaderMap::new()), Err(AuthError::MissingToken));
    }
}
