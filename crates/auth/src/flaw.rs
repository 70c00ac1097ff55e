//! Why a token is not taken.

use tidegate_core::{Error, Kind, Origin};

/// Why a token is not taken. What a caller is told helps whoever set it up, and tells a forger
/// nothing that is not in public documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Malformed,
    Header,
    Algorithm,
    Issuer,
    /// Signed by a key that the issuer does not show (yet).
    Key,
    Signature,
    Type,
    Audience,
    Times,
    Claims,
    /// The key it was issued for is gone.
    Client,
    Expired,
}

impl From<Flaw> for Error {
    fn from(flaw: Flaw) -> Self {
        let message = match flaw {
            Flaw::Malformed => "the token is not written as one: it is cut off, damaged or no JWT",
            Flaw::Header => "the token's header has something that is not taken",
            Flaw::Algorithm => "the token is not signed in a way that is taken",
            Flaw::Issuer => "the token is of an issuer that is not trusted here",
            Flaw::Key => "the token is signed by a key its issuer does not show",
            Flaw::Signature => "the token's signature does not fit",
            Flaw::Type => "the token is no access token",
            Flaw::Audience => "the token is for another audience",
            Flaw::Times => "the token is not valid yet, or its times are no numbers",
            Flaw::Claims => "the token lacks a claim that is needed, or has one of a wrong type",
            Flaw::Client => "the key this token was issued for is revoked or expired",
            Flaw::Expired => "the token has expired: ask for a new one",
        };
        let kind = match flaw {
            Flaw::Expired => Kind::TokenExpired,
            Flaw::Malformed
            | Flaw::Header
            | Flaw::Algorithm
            | Flaw::Issuer
            | Flaw::Key
            | Flaw::Signature
            | Flaw::Type
            | Flaw::Audience
            | Flaw::Times
            | Flaw::Claims
            | Flaw::Client => Kind::Unauthenticated,
        };
        Self::new(kind, Origin::Caller, message)
    }
}
