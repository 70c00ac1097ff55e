//! Bearer tokens beside keys: who holds one, and who may have one (SPEC §9.2).

use crate::{BoxFuture, Error, Result, Secret, Tenant};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Who sends a request, as far as it is known without waiting.
pub enum Identity<'a> {
    /// This tenant.
    Known(Arc<Tenant>),
    /// Nobody: the credential is not valid.
    Refused(Error),
    /// It must be asked first: the credential may be signed by a key that is not here yet.
    Ask(BoxFuture<'a, Result<Arc<Tenant>>>),
}

impl Identity<'_> {
    /// Waits where it must.
    ///
    /// # Errors
    ///
    /// [`crate::Kind::Unauthenticated`] or [`crate::Kind::TokenExpired`] when the credential is
    /// not valid.
    pub async fn known(self) -> Result<Arc<Tenant>> {
        match self {
            Self::Known(tenant) => Ok(tenant),
            Self::Refused(error) => Err(error),
            Self::Ask(asking) => asking.await,
        }
    }
}

/// Issues tokens to those who hold a key, and knows tokens again: its own and those of issuers it
/// trusts.
pub trait Tokens: Send + Sync + 'static {
    /// The tenant a token stands for. Checked from memory, unless it is signed by a key that was
    /// never seen.
    fn identify<'a>(&'a self, token: &'a str) -> Identity<'a>;

    /// The tenant of the client `id` whose secret this is: an existing key and its id.
    fn client(&self, id: &str, secret: &str) -> Option<Arc<Tenant>>;

    /// A token for `client`: for these models only, or for all its key may use.
    ///
    /// # Errors
    ///
    /// [`crate::Kind::Internal`] when it cannot be signed.
    fn grant(&self, client: &Tenant, models: Option<&[&str]>) -> Result<Grant>;

    /// The public keys others check our tokens with: a JWK set (RFC 7517).
    fn key_set(&self) -> Bytes;

    /// Where what is: authorization server metadata (RFC 8414).
    fn metadata(&self) -> Bytes;
}

/// A token that was issued.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The token itself.
    pub token: Secret<String>,
    /// How long it is valid.
    pub expires_in: Duration,
    /// What it is good for, as its `scope` says it.
    pub scope: String,
}

/// Whether `credential` is written like a token: keys have no dots.
pub fn is_token(credential: &str) -> bool {
    credential.contains('.')
}
