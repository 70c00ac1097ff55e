//! BATTERY's hostile tokens: none is taken.

use crate::gate::{Gate, URL};
use tidegate_auth::Options;
use tidegate_core::{Kind, Store as _};
use tidegate_testkit::forge::Forge;

#[tokio::test]
async fn no_hostile_token_is_taken() {
    let gate = Gate::open(&Options::default()).await;
    let forge = Forge::of(gate.dir.path(), URL, &gate.client.0);
    // Otherwise a mistake of the forger would hide every hole.
    let good = forge.good();
    assert_eq!(*gate.holder(&good).await.unwrap().id, gate.client.0);
    let table = forge.hostile();
    assert!(table.len() >= 200, "{}", table.len());
    for row in &table {
        // Twice: nothing that was refused is remembered as good.
        for _ in 0..2 {
            let Err(error) = gate.holder(&row.token).await else { panic!("taken: {}", row.name) };
            let kind = if row.expired { Kind::TokenExpired } else { Kind::Unauthenticated };
            assert_eq!(error.kind(), kind, "{}: {error}", row.name);
        }
    }
    assert!(gate.holder(&good).await.is_ok());
}

#[tokio::test]
async fn a_token_of_a_revoked_client_is_refused_at_once() {
    let gate = Gate::open(&Options::default()).await;
    let (known, fresh) = (gate.token(None), gate.token(None));
    assert!(gate.holder(&known).await.is_ok());
    assert!(gate.store.revoke_key(&gate.client.0).await.unwrap());
    for token in [known, fresh] {
        let error = gate.holder(&token).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthenticated, "{error}");
        assert!(error.message().contains("revoked"), "{error}");
    }
}

#[tokio::test]
async fn a_key_is_no_token_and_a_token_no_key() {
    let gate = Gate::open(&Options::default()).await;
    assert!(gate.holder(&gate.client.1).await.is_err());
    assert!(!tidegate_core::is_token(&gate.client.1));
    let token = gate.token(None);
    assert!(tidegate_core::is_token(&token));
    use tidegate_core::Tokens as _;
    assert!(gate.authority.client(&gate.client.0, &token).is_none(), "a token buys no token");
    assert!(gate.authority.client("nobody000000", &gate.client.1).is_none());
}

/// One character more, less or other, anywhere: it is not the same token, so it is no token.
#[tokio::test]
async fn no_change_of_a_good_token_is_taken() {
    let gate = Gate::open(&Options::default()).await;
    let good = gate.token(None);
    // The numbers of Knuth's MMIX: the same changes every time.
    let mut state = 7_u64;
    let mut roll = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let letters = b"ABab01-_.+/= {}\"%";
    for _ in 0..4000 {
        let mut changed = good.clone().into_bytes();
        for _ in 0..=roll(2) {
            let at = roll(changed.len());
            let letter = letters[roll(letters.len())];
            match roll(4) {
                0 => drop(changed.remove(at)),
                1 => changed.insert(at, letter),
                2 => changed[at] = letter,
                _ => changed.swap(at, at.saturating_sub(1)),
            }
        }
        let changed = String::from_utf8(changed).unwrap();
        let taken = gate.holder(&changed).await.is_ok();
        assert_eq!(taken, changed == good, "{changed}");
    }
}
