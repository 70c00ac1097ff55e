//! Tokens of our own.

use crate::gate::{Gate, URL};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use std::sync::Arc;
use tidegate_auth::{Authority, Options, SigningAlgorithm};
use tidegate_core::{
    Change, KeyChange, KeyRecord, Keys as _, Kind, Scope, Store as _, Tokens as _,
};

fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_says_what_rfc_9068_asks() {
    for (algorithm, name) in
        [(SigningAlgorithm::EdDsa, "EdDSA"), (SigningAlgorithm::Es256, "ES256")]
    {
        let options = Options { algorithm, ..Options::default() };
        let gate = Gate::open(&options).await;
        let token = gate.token(None);
        let (header, claims) = (part(&token, 0), part(&token, 1));
        assert_eq!((&header["typ"], &header["alg"]), (&"at+jwt".into(), &name.into()));
        assert_eq!(header["kid"], gate_key(&gate)["kid"]);
        for claim in ["sub", "client_id"] {
            assert_eq!(claims[claim], *gate.client.0);
        }
        assert_eq!((&claims["iss"], &claims["aud"]), (&URL.into(), &URL.into()));
        let (iat, exp) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
        assert_eq!(exp - iat, 3600);
        assert_eq!(claims["scope"], "*");
        assert_ne!(claims["jti"], part(&gate.token(None), 1)["jti"]);
        assert_eq!(*gate.holder(&token).await.unwrap().id, gate.client.0);
    }
}

#[tokio::test]
async fn a_token_outlived_its_key_for_whoever_checks_it_elsewhere() {
    let gate = Gate::open(&Options::default()).await;
    let tenant = gate.authority.client(&gate.client.0, &gate.client.1).unwrap();
    let life = |token: &str| {
        let claims = part(token, 1);
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap()
    };
    let expire_in = async |validity: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let expires_at = Change::Set(now.as_secs() + validity);
        let change = KeyChange { expires_at, ..KeyChange::default() };
        gate.store.update_key(&gate.client.0, change).await.unwrap().unwrap();
        gate.authority.grant(&tenant, None).unwrap()
    };
    let grant = expire_in(60).await;
    assert!((58..=60).contains(&grant.expires_in.as_secs()), "{:?}", grant.expires_in);
    assert_eq!(life(grant.token.expose()), grant.expires_in.as_secs());
    assert_eq!(expire_in(7200).await.expires_in.as_secs(), 3600);
}

fn gate_key(gate: &Gate) -> Value {
    let set: Value = serde_json::from_slice(&gate.authority.key_set()).unwrap();
    set["keys"][0].clone()
}

#[tokio::test]
async fn a_token_is_for_its_models_and_never_for_more_than_its_key() {
    let gate = Gate::open(&Options::default()).await;
    let models = |names: &[&str]| Scope::Models(names.iter().map(|name| (*name).into()).collect());
    let whole = gate.holder(&gate.token(None)).await.unwrap();
    assert_eq!(whole.scope, Scope::All);
    let token = gate.token(Some(&["a", "b"]));
    let first = gate.holder(&token).await.unwrap();
    assert_eq!(first.scope, models(&["a", "b"]));
    let again = gate.holder(&token).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again), "nothing is made anew for a known token");

    let narrow = Gate::open_for(&Options::default(), models(&["b", "c"])).await;
    let token = narrow.token(Some(&["a", "b"]));
    assert_eq!(narrow.holder(&token).await.unwrap().scope, models(&["b"]));
}

#[tokio::test]
async fn what_becomes_of_the_key_becomes_of_its_tokens() {
    let gate = Gate::open(&Options::default()).await;
    let token = gate.token(Some(&["a"]));
    assert_eq!(gate.holder(&token).await.unwrap().team, None);
    // The store holds the key anew, as after a change: the token follows.
    let mut record: KeyRecord = gate.store.keys().await.unwrap().remove(0);
    record.team = Some("search".into());
    let store = Arc::new(tidegate_store::Memory::new());
    store.add_key(record).await.unwrap();
    let other =
        Authority::open(gate.dir.path(), &Options::default(), URL, store, &gate.web.fetch());
    let tenant = other.unwrap().identify(&token).known().await.unwrap();
    assert_eq!(tenant.team.as_deref(), Some("search"));
}

#[tokio::test]
async fn gateways_that_share_a_directory_take_each_others_tokens() {
    let gate = Gate::open(&Options::default()).await;
    let open = |options: &Options| {
        Authority::open(gate.dir.path(), options, URL, gate.store.clone(), &gate.web.fetch())
            .unwrap()
    };
    let token = gate.token(None);
    assert!(open(&Options::default()).identify(&token).known().await.is_ok());
    let elsewhere = Options { audience: Some("other".into()), ..Options::default() };
    let error = open(&elsewhere).identify(&token).known().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);
    assert!(error.message().contains("audience"), "{error}");
}

#[tokio::test]
async fn the_documents_are_what_others_expect() {
    let options = Options { issuer: Some("https://gate.example/x/".into()), ..Options::default() };
    let gate = Gate::open(&options).await;
    let said: Value = serde_json::from_slice(&gate.authority.metadata()).unwrap();
    assert_eq!(said["issuer"], "https://gate.example/x/");
    assert_eq!(said["token_endpoint"], "https://gate.example/x/oauth/token");
    assert_eq!(said["jwks_uri"], "https://gate.example/x/.well-known/jwks.json");
    assert_eq!(said["grant_types_supported"], serde_json::json!(["client_credentials"]));
    assert_eq!(said["response_types_supported"], serde_json::json!(["none"]));
}
