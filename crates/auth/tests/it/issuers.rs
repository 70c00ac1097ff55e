//! Tokens of issuers that are trusted, in virtual time.

use crate::gate::Gate;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tidegate_auth::{IssuerOptions, Options, VerifyAlgorithm};
use tidegate_core::{Kind, Scope, Tokens as _};
use tidegate_testkit::forge::Forge;
use tokio::time::{Instant, advance, sleep, timeout};

const ISSUER: &str = "https://issuer.test";
const KEYS: &str = "https://issuer.test/keys";

/// An issuer somewhere.
struct Issuer {
    key: EncodingKey,
    algorithm: Algorithm,
    key_id: &'static str,
}

impl Issuer {
    fn new(algorithm: Algorithm, key_id: &'static str) -> Self {
        use aws_lc_rs::{encoding::AsDer as _, rand::SystemRandom, rsa, signature as s};
        let random = SystemRandom::new();
        let key = match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(
                s::Ed25519KeyPair::generate_pkcs8v1(&random).unwrap().as_ref(),
            ),
            Algorithm::ES256 => EncodingKey::from_ec_der(
                s::EcdsaKeyPair::generate_pkcs8(&s::ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                    .unwrap()
                    .as_ref(),
            ),
            _ => {
                let pair = s::RsaKeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
                let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
                let body = base64::engine::general_purpose::STANDARD.encode(pkcs8.as_ref());
                let pem =
                    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
                EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
            }
        };
        Self { key, algorithm, key_id }
    }

    fn shown(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.key_id.into());
        serde_json::to_value(jwk).unwrap()
    }

    fn set(issuers: &[&Self]) -> Value {
        json!({ "keys": issuers.iter().map(|issuer| issuer.shown()).collect::<Vec<_>>() })
    }

    fn claims() -> Value {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        json!({
            "iss": ISSUER, "sub": "ada", "aud": ["gate", "other"],
            "iat": now.as_secs(), "exp": now.as_secs() + 3600,
        })
    }

    fn token(&self, changes: Value) -> String {
        self.token_with(json!({ "typ": "JWT" }), changes)
    }

    fn token_with(&self, header: Value, changes: Value) -> String {
        let merge = |mut whole: Value, changes: Value| {
            let object = whole.as_object_mut().unwrap();
            for (name, value) in changes.as_object().unwrap() {
                match value {
                    Value::Null => drop(object.remove(name)),
                    value => drop(object.insert(name.clone(), value.clone())),
                }
            }
            whole
        };
        let own = json!({ "alg": self.algorithm, "kid": self.key_id });
        let encode = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed =
            format!("{}.{}", encode(merge(own, header)), encode(merge(Self::claims(), changes)));
        let signature = crypto::sign(signed.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }
}

fn options(change: impl FnOnce(&mut IssuerOptions)) -> Options {
    let mut corp = IssuerOptions {
        issuer: ISSUER.into(),
        audience: "gate".into(),
        jwks_url: Some(KEYS.into()),
        ..IssuerOptions::default()
    };
    change(&mut corp);
    Options { issuers: [("corp".to_owned(), corp)].into(), ..Options::default() }
}

/// A gate that maintains itself, after its first fetch.
async fn gate(options: &Options, keys: Option<Value>) -> Gate {
    let gate = Gate::open(options).await;
    if let Some(keys) = keys {
        gate.web.put(KEYS, keys);
    }
    let authority = gate.authority.clone();
    tokio::spawn(async move { authority.maintain().await });
    sleep(Duration::from_millis(200)).await;
    gate
}

fn fetches(gate: &Gate) -> usize {
    gate.web.fetched.lock().len()
}

#[tokio::test(start_paused = true)]
async fn every_algorithm_of_the_list_is_taken_and_no_other() {
    for algorithm in [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA] {
        let issuer = Issuer::new(algorithm, "one");
        let gate = gate(&options(|_| ()), Some(Issuer::set(&[&issuer]))).await;
        let tenant = gate.holder(&issuer.token(json!({}))).await.unwrap();
        assert_eq!((&*tenant.id, &*tenant.name), ("corp:ada", "ada"));
        assert_eq!((&tenant.scope, &tenant.limits, &tenant.team), (&Scope::All, &None, &None));
    }
    let issuer = Issuer::new(Algorithm::ES256, "one");
    let only = options(|corp| corp.algorithms = vec![VerifyAlgorithm::Rs256]);
    let gate = gate(&only, Some(Issuer::set(&[&issuer]))).await;
    assert!(gate.holder(&issuer.token(json!({}))).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn claims_say_team_and_models() {
    let issuer = Issuer::new(Algorithm::EdDSA, "one");
    let mapped = options(|corp| {
        corp.caller_claim = "email".into();
        corp.team_claim = Some("dept".into());
        corp.models_claim = Some("scope".into());
        corp.models_prefix = "tidegate:".into();
    });
    let gate = gate(&mapped, Some(Issuer::set(&[&issuer]))).await;
    let models = |names: &[&str]| Scope::Models(names.iter().map(|name| (*name).into()).collect());
    for (scope, expected) in [
        (json!("openid tidegate:a tidegate:b"), models(&["a", "b"])),
        (json!(["tidegate:a", "x", "tidegate:"]), models(&["a"])),
        (json!("openid"), models(&[])),
        (Value::Null, models(&[])),
    ] {
        let changes = json!({ "email": "ada@corp", "dept": "search", "scope": scope });
        let tenant = gate.holder(&issuer.token(changes)).await.unwrap();
        assert_eq!((&*tenant.id, tenant.team.as_deref()), ("corp:ada@corp", Some("search")));
        assert_eq!(tenant.scope, expected);
    }
    for bad in [
        json!({ "email": null }),
        json!({ "email": 1 }),
        json!({ "email": "a\nb" }),
        json!({ "email": "a", "dept": 7 }),
        json!({ "email": "a", "scope": 7 }),
        json!({ "email": "a", "scope": [7] }),
    ] {
        let error = gate.holder(&issuer.token(bad.clone())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthenticated, "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_tokens_of_an_issuer_are_refused() {
    let issuer = Issuer::new(Algorithm::RS256, "one");
    let gate = gate(&options(|_| ()), Some(Issuer::set(&[&issuer]))).await;
    let past = json!({ "exp": 1000, "iat": 1 });
    let error = gate.holder(&issuer.token(past)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TokenExpired);
    let ours = Forge::of(gate.dir.path(), ISSUER, "ada");
    for (name, token) in [
        ("other audience", issuer.token(json!({ "aud": "other" }))),
        ("no audience", issuer.token(json!({ "aud": null }))),
        ("an id token", issuer.token(json!({ "nonce": "n" }))),
        ("an id token", issuer.token(json!({ "at_hash": "h" }))),
        ("other type", issuer.token_with(json!({ "typ": "logout+jwt" }), json!({}))),
        ("PS256 by the name of RS256's key", {
            let other =
                Issuer { algorithm: Algorithm::PS256, key: issuer.key.clone(), key_id: "one" };
            other.token(json!({}))
        }),
        ("our own key for its issuer", ours.good()),
        ("no expiry", issuer.token(json!({ "exp": null }))),
        ("future", issuer.token(json!({ "iat": 99_999_999_999_u64 }))),
        ("brings its key", issuer.token_with(json!({ "jwk": issuer.shown() }), json!({}))),
        ("says it is us", issuer.token(json!({ "iss": crate::gate::URL }))),
        ("an issuer nobody trusts", issuer.token(json!({ "iss": "https://issuer.test/" }))),
    ] {
        let error = gate.holder(&token).await.err().unwrap_or_else(|| panic!("taken: {name}"));
        assert_eq!(error.kind(), Kind::Unauthenticated, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_costs_one_fetch_per_thirty_seconds_whoever_asks() {
    let (one, two) = (Issuer::new(Algorithm::EdDSA, "one"), Issuer::new(Algorithm::EdDSA, "two"));
    let gate = Arc::new(gate(&options(|_| ()), Some(Issuer::set(&[&one]))).await);
    assert_eq!(fetches(&gate), 1);
    gate.web.put(KEYS, Issuer::set(&[&one, &two]));
    let token = two.token(json!({}));
    // The first fetch was a moment ago.
    assert!(gate.holder(&token).await.is_err());
    assert_eq!(fetches(&gate), 1);
    advance(Duration::from_secs(30)).await;
    let asking = (0..200).map(|n| {
        let (gate, token) = (gate.clone(), token.clone());
        let made_up = Issuer { key: two.key.clone(), algorithm: two.algorithm, key_id: "made-up" };
        let token = if n % 2 == 0 { token } else { made_up.token(json!({ "n": n })) };
        tokio::spawn(async move { gate.holder(&token).await.is_ok() })
    });
    let mut taken = 0;
    for asked in asking.collect::<Vec<_>>() {
        taken += usize::from(asked.await.unwrap());
    }
    assert_eq!((taken, fetches(&gate)), (100, 2));
    // Whoever hangs up while it is asked spoils nothing for the next.
    advance(Duration::from_secs(30)).await;
    let three = Issuer::new(Algorithm::EdDSA, "three");
    gate.web.put(KEYS, Issuer::set(&[&one, &three]));
    let token = three.token(json!({}));
    assert!(timeout(Duration::from_millis(1), gate.holder(&token)).await.is_err());
    sleep(Duration::from_millis(100)).await;
    assert!(gate.holder(&token).await.is_ok());
    assert_eq!(fetches(&gate), 3);
}

#[tokio::test(start_paused = true)]
async fn whoever_came_while_the_keys_were_fetched_was_refused() {
    let (one, two) = (Issuer::new(Algorithm::EdDSA, "one"), Issuer::new(Algorithm::EdDSA, "two"));
    let gate = Gate::open(&options(|_| ())).await;
    gate.web.put(KEYS, Issuer::set(&[&one]));
    let authority = gate.authority.clone();
    tokio::spawn(async move { authority.maintain().await });
    // A fetch takes 50 ms here: the first one, at the start ...
    sleep(Duration::from_millis(10)).await;
    assert!(gate.holder(&one.token(json!({}))).await.is_ok());
    // ... and one that another caller's token asked for.
    advance(Duration::from_secs(30)).await;
    gate.web.put(KEYS, Issuer::set(&[&one, &two]));
    let (gate, token) = (Arc::new(gate), two.token(json!({})));
    let first = {
        let (gate, token) = (gate.clone(), token.clone());
        tokio::spawn(async move { gate.holder(&token).await.is_ok() })
    };
    sleep(Duration::from_millis(10)).await;
    assert!(gate.holder(&token).await.is_ok());
    assert!(first.await.unwrap());
    assert_eq!(fetches(&gate), 2, "and it cost no fetch more");
    let unknown = Issuer { key: two.key.clone(), algorithm: two.algorithm, key_id: "made-up" };
    assert!(gate.holder(&unknown.token(json!({}))).await.is_err());
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fetches(&gate), 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_asked_just_before_a_fetch_ended_waited_for_the_next() {
    let issuer = Issuer::new(Algorithm::EdDSA, "one");
    let gate = Gate::open(&options(|_| ())).await;
    gate.web.put(KEYS, Issuer::set(&[&issuer]));
    let authority = gate.authority.clone();
    tokio::spawn(async move { authority.maintain().await });
    sleep(Duration::from_millis(10)).await;
    let token = issuer.token(json!({}));
    let asked = gate.authority.identify(&token);
    // It is looked after only when the fetch, which takes 50 ms, has ended.
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    assert!(asked.known().await.is_ok());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_dead_issuer_locks_nobody_out_whose_key_is_known() {
    let issuer = Issuer::new(Algorithm::ES256, "one");
    let gate = gate(&options(|_| ()), Some(Issuer::set(&[&issuer]))).await;
    gate.web.documents.lock().clear();
    sleep(Duration::from_secs(3600)).await;
    assert!(fetches(&gate) > 50, "it is asked again and again");
    assert!(gate.holder(&issuer.token(json!({}))).await.is_ok());
    for garbage in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, "<html>"] {
        gate.web.put(KEYS, garbage);
        sleep(Duration::from_secs(60)).await;
        assert!(gate.holder(&issuer.token(json!({}))).await.is_ok(), "{garbage}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_absent_at_start_is_found_later_and_withdrawn_keys_are_out_of_use() {
    let issuer = Issuer::new(Algorithm::EdDSA, "one");
    let gate = gate(&options(|_| ()), None).await;
    let token = issuer.token(json!({}));
    assert_eq!(gate.holder(&token).await.unwrap_err().kind(), Kind::Unauthenticated);
    gate.web.put(KEYS, Issuer::set(&[&issuer]));
    sleep(Duration::from_secs(31)).await;
    assert!(gate.holder(&token).await.is_ok());
    gate.web.put(KEYS, Issuer::set(&[&Issuer::new(Algorithm::EdDSA, "next")]));
    sleep(Duration::from_secs(601)).await;
    assert!(gate.holder(&token).await.is_err(), "remembered beyond its key");
}

#[tokio::test(start_paused = true)]
async fn keys_are_found_by_discovery() {
    let issuer = Issuer::new(Algorithm::EdDSA, "one");
    let found = options(|corp| corp.jwks_url = None);
    let at = format!("{ISSUER}/.well-known/openid-configuration");
    for (document, good) in [
        (json!({ "issuer": ISSUER, "jwks_uri": KEYS }), true),
        (json!({ "issuer": "https://evil.test", "jwks_uri": KEYS }), false),
        (json!({ "issuer": ISSUER, "jwks_uri": "http://issuer.test/keys" }), false),
        (json!({ "issuer": ISSUER }), false),
        (json!([]), false),
    ] {
        let gate = Gate::open(&found).await;
        gate.web.put(&at, &document);
        gate.web.put(KEYS, Issuer::set(&[&issuer]));
        gate.web.put("http://issuer.test/keys", Issuer::set(&[&issuer]));
        let authority = gate.authority.clone();
        tokio::spawn(async move { authority.maintain().await });
        sleep(Duration::from_millis(300)).await;
        assert_eq!(gate.holder(&issuer.token(json!({}))).await.is_ok(), good, "{document}");
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_trusted_are_left_out() {
    let good = Issuer::new(Algorithm::EdDSA, "good");
    let with = |changes: Value| {
        let mut key = Issuer::new(Algorithm::EdDSA, "x").shown();
        for (name, value) in changes.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    let two = Issuer::new(Algorithm::EdDSA, "twice");
    let set = json!({ "keys": [
        good.shown(), two.shown(), with(json!({ "kid": "twice" })),
        with(json!({ "use": "enc" })), with(json!({ "key_ops": ["sign"] })),
        with(json!({ "alg": "ES256" })), with(json!({ "kty": "new" })), "text", null,
        { "kty": "oct", "kid": "x", "k": "c2VjcmV0" },
        { "kty": "RSA", "kid": "short", "n": "AQAB", "e": "AQAB" },
    ] });
    let gate = gate(&options(|_| ()), Some(set)).await;
    assert!(gate.holder(&good.token(json!({}))).await.is_ok());
    assert!(gate.holder(&two.token(json!({}))).await.is_err(), "two keys of one name");
    // With one key left, nothing need be named.
    assert!(gate.holder(&good.token_with(json!({ "kid": null }), json!({}))).await.is_ok());
}
