//! The shared token, and how both sides prove that they know it without saying it.
//!
//! Every value is HMAC-SHA256 over a label and length-delimited fields, so no two kinds of value
//! can be mistaken for each other and no proof can be reflected.
//!
//! Nothing secret has an `==`, so the compiler finds whoever compares in a way that takes longer the
//! more is right:
//!
//! ```compile_fail,E0369
//! # use zproxy_proto::auth::Mac;
//! let _ = Mac([0; 32]) == Mac([0; 32]);
//! ```
//! ```compile_fail,E0369
//! # use zproxy_proto::auth::Ticket;
//! let _ = Ticket([0; 32]) == Ticket([0; 32]);
//! ```
//! ```compile_fail,E0369
//! # use zproxy_proto::auth::Token;
//! let _ = Token::parse("a-token-of-the-docs") == Token::parse("a-token-of-the-docs");
//! ```
//! ```compile_fail,E0369
//! # fn compare(a: zproxy_proto::auth::SessionKey, b: zproxy_proto::auth::SessionKey) {
//! let _ = a == b;
//! # }
//! ```
//!
//! All comparisons go through one function here, which takes the same time whatever differs.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::hex;
use crate::id::{ClientId, CtlId, ProxyId, ServerId};
use crate::limits::{TOKEN_LEN_MAX, TOKEN_LEN_MIN, TOKEN_RANDOM_SIZE};
use crate::wire::{Attach, Attached};

type HmacSha256 = Hmac<Sha256>;

/// The secret that gateway and client share. It has no `Display`, its `Debug` shows nothing, and
/// its bytes are wiped when the last copy goes.
#[derive(Clone)]
pub struct Token(Arc<Secret>);

type Secret = Zeroizing<Vec<u8>>;

/// The one comparison: it takes the same time whatever differs.
fn is_same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// Nothing but white space.
    Empty,
    /// Fewer bytes than a secret needs.
    TooShort,
    /// More bytes than anybody means.
    TooLong,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the token is empty"),
            Self::TooShort => write!(f, "the token is shorter than {TOKEN_LEN_MIN} bytes"),
            Self::TooLong => write!(f, "the token is longer than {TOKEN_LEN_MAX} bytes"),
        }
    }
}

impl std::error::Error for TokenError {}

impl Token {
    /// The token in `text`, without the white space around it.
    ///
    /// # Errors
    /// When what remains is empty, shorter than [`TOKEN_LEN_MIN`] or longer than [`TOKEN_LEN_MAX`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        match text.len() {
            0 => Err(TokenError::Empty),
            1..TOKEN_LEN_MIN => Err(TokenError::TooShort),
            TOKEN_LEN_MIN..=TOKEN_LEN_MAX => Ok(Self(Arc::new(Secret::new(text.into())))),
            _ => Err(TokenError::TooLong),
        }
    }

    /// The text of a fresh token, to be stored, and the token itself.
    #[must_use]
    pub fn generate(random: [u8; TOKEN_RANDOM_SIZE]) -> (String, Self) {
        let text = hex::encode(&random);
        let token = Self::parse(&text).expect("64 digits are within the limits");
        (text, token)
    }

    fn mac(&self, label: &str, fields: &[&[u8]]) -> HmacSha256 {
        mac_over(&self.0, label, fields)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A random number used in one handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub [u8; 32]);
hex::serde_as_hex!(Nonce);

/// A message authentication code. Not comparable by `==`: use the `verify_…` functions.
#[derive(Clone, Copy)]
pub struct Mac(pub [u8; 32]);
hex::serde_as_hex!(Mac);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac(…)")
    }
}

/// Names a session to the gateway that made it, so that the same run of a client gets it back after
/// its ctl_conn was lost.
#[derive(Clone, Copy)]
pub struct Ticket(pub [u8; 32]);
hex::serde_as_hex!(Ticket);

impl Ticket {
    /// Whether both are the same; takes the same time whatever differs.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        is_same(&self.0, &other.0)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

/// Authenticates the `Attach` of what belongs to one ctl_conn.
#[derive(Clone)]
pub struct SessionKey(Arc<Secret>);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(…)")
    }
}

/// What both sides of one handshake have said: every proof covers all of it.
#[derive(Clone, Copy, Debug)]
pub struct Transcript {
    /// Who the client says it is.
    pub client_id: ClientId,
    /// Who the gateway says it is.
    pub server_id: ServerId,
    /// Chosen by the client.
    pub client_nonce: Nonce,
    /// Chosen by the gateway.
    pub server_nonce: Nonce,
}

impl Transcript {
    fn fields(&self) -> [&[u8]; 4] {
        [
            self.client_id.as_bytes(),
            self.server_id.as_bytes(),
            &self.client_nonce.0,
            &self.server_nonce.0,
        ]
    }
}

const GATEWAY: &str = "zproxy 2 gateway";
const CLIENT: &str = "zproxy 2 client";
const SESSION: &str = "zproxy 2 session";
const ATTACH: &str = "zproxy 2 attach";
const LANE: &str = "zproxy 2 lane";

/// What a gateway that knows the token says.
#[must_use]
pub fn gateway_proof(token: &Token, transcript: &Transcript) -> Mac {
    Mac(token.mac(GATEWAY, &transcript.fields()).finalize().into_bytes().into())
}

/// Whether `proof` is what a gateway that knows the token says.
#[must_use]
pub fn verify_gateway_proof(token: &Token, transcript: &Transcript, proof: &Mac) -> bool {
    is_same(&gateway_proof(token, transcript).0, &proof.0)
}

/// What a client that knows the token says.
#[must_use]
pub fn client_proof(token: &Token, transcript: &Transcript) -> Mac {
    Mac(token.mac(CLIENT, &transcript.fields()).finalize().into_bytes().into())
}

/// Whether `proof` is what a client that knows the token says.
#[must_use]
pub fn verify_client_proof(token: &Token, transcript: &Transcript, proof: &Mac) -> bool {
    is_same(&client_proof(token, transcript).0, &proof.0)
}

/// The key that both sides derive once they have proved themselves.
#[must_use]
pub fn session_key(token: &Token, transcript: &Transcript) -> SessionKey {
    let mut key = token.mac(SESSION, &transcript.fields()).finalize().into_bytes();
    let secret = Secret::new(key.to_vec());
    key.as_mut_slice().zeroize();
    SessionKey(Arc::new(secret))
}

/// The code in an `Attach`.
#[must_use]
pub fn attach_mac(key: &SessionKey, what: Attached, ctl_id: CtlId, proxy: ProxyId) -> Mac {
    let label = match what {
        Attached::Conn => ATTACH,
        Attached::Lane => LANE,
    };
    let fields: [&[u8]; 2] = [&ctl_id.0, &proxy.0.to_be_bytes()];
    Mac(mac_over(&key.0, label, &fields).finalize().into_bytes().into())
}

/// Whether the code of an `Attach` is right.
#[must_use]
pub fn verify_attach_mac(key: &SessionKey, it: &Attach) -> bool {
    is_same(&attach_mac(key, it.what, it.ctl_id, it.proxy).0, &it.mac.0)
}

fn mac_over(key: &[u8], label: &str, fields: &[&[u8]]) -> HmacSha256 {
    let mut mac = HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length");
    for field in std::iter::once(&label.as_bytes()).chain(fields) {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript() -> Transcript {
        Transcript {
            client_id: ClientId::from_random([1; 16]),
            server_id: ServerId::from_random([2; 16]),
            client_nonce: Nonce([3; 32]),
            server_nonce: Nonce([4; 32]),
        }
    }

    fn token(text: &str) -> Token {
        Token::parse(text).unwrap()
    }

    /// A token is trimmed text of a sensible length, and nothing else is one.
    #[test]
    fn tokens_have_a_length() {
        assert_eq!(Token::parse(" \n").unwrap_err(), TokenError::Empty);
        assert_eq!(Token::parse("fifteen-bytes!!").unwrap_err(), TokenError::TooShort);
        assert_eq!(Token::parse(&"x".repeat(4097)).unwrap_err(), TokenError::TooLong);
        assert!(Token::parse(&"x".repeat(4096)).is_ok());
        let (a, b) = (token("sixteen-bytes-ok"), token("  sixteen-bytes-ok\r\n"));
        assert_eq!(gateway_proof(&a, &transcript()).0, gateway_proof(&b, &transcript()).0);
    }

    /// A generated token can be stored and read back, and differs with its random bytes.
    #[test]
    fn generated_tokens_are_tokens() {
        let (text, made) = Token::generate([9; 32]);
        let read = token(&format!("{text}\n"));
        assert_eq!(client_proof(&made, &transcript()).0, client_proof(&read, &transcript()).0);
        assert_ne!(Token::generate([8; 32]).0, text);
    }

    /// No secret shows in a debug print.
    #[test]
    fn debug_shows_nothing() {
        let secret = token("a-very-secret-token");
        let key = session_key(&secret, &transcript());
        let shown = format!(
            "{secret:?} {key:?} {:?} {:?}",
            Mac(*b"0123456789abcdef0123456789abcdef"),
            Ticket([7; 32])
        );
        assert_eq!(shown, "Token(…) SessionKey(…) Mac(…) Ticket(…)");
    }

    /// Only the same token, role and transcript give the same proof.
    #[test]
    fn proofs_cover_everything() {
        let (right, wrong) = (token("the-right-token!"), token("the-wrong-token!"));
        let said = transcript();
        let proof = gateway_proof(&right, &said);
        assert!(verify_gateway_proof(&right, &said, &proof));
        assert!(!verify_gateway_proof(&wrong, &said, &proof));
        assert!(!verify_client_proof(&right, &said, &proof), "a proof cannot be reflected");
        assert!(verify_client_proof(&right, &said, &client_proof(&right, &said)));
        for other in [
            Transcript { client_id: ClientId::from_random([0; 16]), ..said },
            Transcript { server_id: ServerId::from_random([0; 16]), ..said },
            Transcript { client_nonce: Nonce([0; 32]), ..said },
            Transcript { server_nonce: Nonce([0; 32]), ..said },
        ] {
            assert!(!verify_gateway_proof(&right, &other, &proof));
        }
    }

    /// An attach code is good for its kind, its ctl_conn and its id only.
    #[test]
    fn attach_codes_cover_everything() {
        let key = session_key(&token("the-right-token!"), &transcript());
        let (ctl_id, proxy) = (CtlId([5; 16]), ProxyId::new(1, 2, 3));
        for (what, other) in [(Attached::Conn, Attached::Lane), (Attached::Lane, Attached::Conn)] {
            let mac = attach_mac(&key, what, ctl_id, proxy);
            let right = Attach { what, ctl_id, proxy, mac };
            assert!(verify_attach_mac(&key, &right));
            for wrong in [
                Attach { what: other, ..right },
                Attach { ctl_id: CtlId([6; 16]), ..right },
                Attach { proxy: ProxyId::new(1, 2, 4), ..right },
            ] {
                assert!(!verify_attach_mac(&key, &wrong));
            }
        }
    }

    /// The construction is HMAC-SHA256 over length-delimited fields: a value computed elsewhere.
    #[test]
    fn known_value() {
        let mac = mac_over(b"0123456789abcdef", "label", &[b"ab", b"c"]);
        assert_eq!(hex::encode(&mac.finalize().into_bytes()), KNOWN);
    }

    const KNOWN: &str = "015326d2024a2b5720e1c9213f36f7c23c0c2ee69d6fefade2433484c9abc12f";

    /// Tickets match themselves only.
    #[test]
    fn tickets_match_themselves() {
        let mut other = [7; 32];
        other[31] = 8;
        assert!(Ticket([7; 32]).matches(&Ticket([7; 32])));
        assert!(!Ticket([7; 32]).matches(&Ticket(other)));
    }

    /// There is one comparison of secrets in the crate, and it is the constant-time one.
    #[test]
    fn one_comparison() {
        let source = include_str!("auth.rs");
        let code = source.split("mod tests").next().unwrap();
        assert_eq!(code.matches(".ct_eq(").count(), 1);
        assert_eq!(code.matches("is_same(").count(), 5, "its definition and its four uses");
        for other in [".verify_slice(", " == &", ".0 ==", ".eq("] {
            assert!(!code.contains(other), "{other}");
        }
        let mut right = [7; 32];
        assert!(is_same(&right, &[7; 32]));
        for place in 0..32 {
            right[place] ^= 0x80;
            assert!(!is_same(&right, &[7; 32]));
            right[place] ^= 0x80;
        }
    }
}
