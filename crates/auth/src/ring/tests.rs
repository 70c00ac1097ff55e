//! Two gateways on one directory, by the clock.

use super::*;
use std::fs;

const DAY: u64 = 86_400;
const START: u64 = 1_700_000_000;

struct House {
    dir: tempfile::TempDir,
    options: Options,
}

impl House {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), options: Options::default() }
    }

    fn ring(&self, now: u64) -> Ring {
        Ring::open(self.dir.path(), &self.options, now).unwrap()
    }

    fn files(&self) -> Vec<String> {
        Directory::open(self.dir.path()).unwrap().names().unwrap()
    }
}

fn sign(ring: &Ring, now: u64) -> String {
    ring.sign(&serde_json::json!({ "sub": "a" }), now).unwrap()
}

/// The key a token is signed by, and whether `ring` takes the signature.
fn check(ring: &Ring, token: &str) -> (String, Result<(), Flaw>) {
    let parsed = crate::compact::Compact::parse(token).unwrap();
    let id = parsed.key_id.clone().unwrap();
    let checked = ring.verify(&id, parsed.algorithm, parsed.signed, parsed.signature);
    (id, checked)
}

#[test]
fn keys_survive_restarts_and_are_shared() {
    let house = House::new();
    let (first, second) = (house.ring(START), house.ring(START));
    let token = sign(&first, START);
    for ring in [&second, &house.ring(START + DAY)] {
        assert_eq!(check(ring, &token).1, Ok(()));
        assert_eq!(check(&first, &sign(ring, START + 5)).1, Ok(()));
    }
    assert_eq!(house.files().len(), 1);
}

#[test]
fn a_new_key_is_published_before_it_signs_and_the_old_one_outlives_its_last_token() {
    let house = House::new();
    let (one, other) = (house.ring(START), house.ring(START));
    let due = START + 30 * DAY;
    let (old, _) = check(&one, &sign(&one, START));
    one.look(due - 1).unwrap();
    assert_eq!(house.files().len(), 1);
    one.look(due).unwrap();
    assert_eq!(house.files().len(), 2);
    assert_eq!(check(&one, &sign(&one, due + LEAD_SECS - 1)).0, old);
    let last_of_old = sign(&one, due + LEAD_SECS - 1);
    // The other gateway has had all that time to look.
    other.look(due + 2).unwrap();
    let fresh = sign(&one, due + LEAD_SECS);
    let (new, checked) = check(&other, &fresh);
    assert_ne!(new, old);
    assert_eq!(checked, Ok(()));
    assert_eq!(house.files().len(), 2, "looking makes no further key");

    let end = due + LEAD_SECS + 3600 + SPARE_SECS;
    one.look(end).unwrap();
    assert_eq!(check(&one, &last_of_old).1, Ok(()));
    one.look(end + 1).unwrap();
    assert_eq!(check(&one, &last_of_old).1, Err(Flaw::Key));
    other.look(end + 1).unwrap();
    assert_eq!(check(&other, &last_of_old).1, Err(Flaw::Key));
    assert_eq!(house.files(), [new]);
}

#[test]
fn an_old_key_that_could_not_be_deleted_stayed_in_use() {
    let house = House::new();
    let (ring, due) = (house.ring(START), START + 30 * DAY);
    ring.look(due).unwrap();
    let token = sign(&ring, due);
    let [old, new] = &house.files()[..] else { panic!("two keys") };
    // A directory of its name cannot be deleted like a file, whoever runs this.
    let file = house.dir.path().join("oauth").join(format!("{old}.pem"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let end = due + LEAD_SECS + 3600 + SPARE_SECS + 1;
    for now in [end, end + 2] {
        ring.look(now).unwrap_err();
        assert_eq!(check(&ring, &token), (old.clone(), Err(Flaw::Key)));
        assert_eq!(check(&ring, &sign(&ring, now)), (new.clone(), Ok(())));
    }
}

#[test]
fn another_algorithm_takes_its_turn_like_another_key() {
    let mut house = House::new();
    let before = house.ring(START);
    let token = sign(&before, START);
    house.options.algorithm = SigningAlgorithm::Es256;
    let after = house.ring(START + DAY);
    assert_eq!(check(&after, &token).1, Ok(()));
    let fresh = sign(&after, START + DAY + LEAD_SECS);
    assert!(check(&after, &fresh).0.starts_with("es256-"));
    assert_eq!(check(&after, &fresh).1, Ok(()));
}

#[test]
fn a_deleted_key_is_out_of_use() {
    let house = House::new();
    let ring = house.ring(START);
    let token = sign(&ring, START);
    let generation = ring.generation();
    let [name] = &house.files()[..] else { panic!("one key") };
    fs::remove_file(house.dir.path().join(format!("oauth/{name}.pem"))).unwrap();
    ring.look(START + 5).unwrap();
    assert_eq!(check(&ring, &token).1, Err(Flaw::Key));
    assert_ne!(ring.generation(), generation);
    assert_eq!(check(&ring, &sign(&ring, START + 5)).1, Ok(()));
}

#[test]
fn damaged_and_open_files_are_refused_by_name_and_the_known_keys_stay() {
    let house = House::new();
    let ring = house.ring(START);
    let token = sign(&ring, START);
    let path = house.dir.path().join("oauth/eddsa-1700000001-x.pem");
    fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    let says = |ring: &Ring| ring.look(START + 9).unwrap_err().message().to_owned();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let said = says(&ring);
        assert!(said.contains("eddsa-1700000001-x.pem") && said.contains("chmod 600"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let oauth = house.dir.path().join("oauth");
        assert_eq!(mode(oauth.clone()), 0o700);
        for name in house.files() {
            assert_eq!(mode(oauth.join(format!("{name}.pem"))), 0o600);
        }
    }
    let said = says(&ring);
    assert!(said.contains("eddsa-1700000001-x is damaged"), "{said}");
    assert_eq!(check(&ring, &token).1, Ok(()));
    assert!(Ring::open(house.dir.path(), &house.options, START).is_err());
}

#[test]
fn a_stray_file_kept_deleted_keys_in_use_and_the_next_from_being_made() {
    for strays in [1, MAX_KEYS] {
        let house = House::new();
        let (ring, oauth) = (house.ring(START), house.dir.path().join("oauth"));
        let token = sign(&ring, START);
        let [name] = &house.files()[..] else { panic!("one key") };
        let stolen = oauth.join(format!("{name}.pem"));
        for stray in 0..strays {
            fs::copy(&stolen, oauth.join(format!("backup-{stray}.pem"))).unwrap();
        }
        ring.look(START + 2).unwrap_err();
        let generation = ring.generation();
        fs::remove_file(stolen).unwrap();
        let said = ring.look(START + 4).unwrap_err();
        assert!(said.message().contains("delete"), "{said}");
        assert_eq!(check(&ring, &token).1, Err(Flaw::Key));
        assert_ne!(ring.generation(), generation, "tokens that were checked are checked again");
        let fresh = sign(&ring, START + 4);
        assert_eq!(check(&ring, &fresh).1, Ok(()));
        let generation = ring.generation();
        ring.look(START + 6).unwrap_err();
        assert_eq!(ring.generation(), generation, "and nothing changes any more");
        assert_eq!(check(&ring, &fresh).1, Ok(()));
    }
}

#[test]
fn the_set_shows_public_parts_only() {
    for algorithm in [SigningAlgorithm::EdDsa, SigningAlgorithm::Es256] {
        let mut house = House::new();
        house.options.algorithm = algorithm;
        let set: serde_json::Value = serde_json::from_slice(&house.ring(START).set()).unwrap();
        let key = &set["keys"][0];
        assert_eq!(key["kid"], house.files()[0]);
        assert_eq!(key["use"], "sig");
        assert!(key["alg"].is_string() && key["x"].is_string());
        assert!(key.get("d").is_none(), "{key}");
    }
}
