//! An authority over a store with one key, and issuers it trusts.

use bytes::Bytes;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tempfile::TempDir;
use tidegate_auth::{Authority, Fetch, Options};
use tidegate_core::{Error, KeyRecord, Result, Scope, Store as _, Tenant, Tokens as _};
use tidegate_store::{Memory, key};

pub(crate) const URL: &str = "http://gate.test";

/// Documents by their URL; whoever is not here is away.
#[derive(Clone, Default)]
pub(crate) struct Web {
    pub(crate) documents: Arc<Mutex<HashMap<String, String>>>,
    pub(crate) fetched: Arc<Mutex<Vec<String>>>,
}

impl Web {
    pub(crate) fn put(&self, url: &str, document: impl ToString) {
        self.documents.lock().insert(url.to_owned(), document.to_string());
    }

    pub(crate) fn fetch(&self) -> Fetch {
        let web = self.clone();
        Arc::new(move |url| {
            let web = web.clone();
            Box::pin(async move {
                web.fetched.lock().push(url.clone());
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                match web.documents.lock().get(&url) {
                    Some(document) => Ok(Bytes::from(document.clone())),
                    None => Err(format!("{url} is away")),
                }
            })
        })
    }
}

pub(crate) struct Gate {
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<Memory>,
    pub(crate) authority: Arc<Authority>,
    /// Id and key of the only caller.
    pub(crate) client: (String, String),
    pub(crate) web: Web,
}

impl Gate {
    pub(crate) async fn open(options: &Options) -> Self {
        Self::open_for(options, Scope::All).await
    }

    pub(crate) async fn open_for(options: &Options, scope: Scope) -> Self {
        let store = Arc::new(Memory::new());
        let (secret, record) = key::mint("ci", 0).unwrap();
        let client = (record.id.to_string(), secret.expose().clone());
        store.add_key(KeyRecord { scope, ..record }).await.unwrap();
        let (dir, web) = (tempfile::tempdir().unwrap(), Web::default());
        let authority = Authority::open(dir.path(), options, URL, store.clone(), &web.fetch());
        Self { dir, store, authority: Arc::new(authority.unwrap()), client, web }
    }

    /// A token for the only caller.
    pub(crate) fn token(&self, models: Option<&[&str]>) -> String {
        let tenant = self.authority.client(&self.client.0, &self.client.1).unwrap();
        self.authority.grant(&tenant, models).unwrap().token.expose().clone()
    }

    pub(crate) async fn holder(&self, token: &str) -> Result<Arc<Tenant>, Error> {
        self.authority.identify(token).known().await
    }
}
