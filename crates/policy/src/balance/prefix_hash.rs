//! prefix-hash: what begins alike goes to the same server, which has the beginning cached.
//!
//! Rendezvous hashing: every target draws a number from the key, and the largest wins, scaled by
//! weight. All gateways agree without talking, and a target that goes takes only its own keys
//! along. A popular prefix would drown its server, so a target with more than 1.25 times its fair
//! part in flight is passed over for the key's next choice (Mirrokni, Thorup, Zadimoghaddam,
//! "Consistent hashing with bounded loads").

use super::Field;

/// How much more than its fair part in flight a target may have.
const BOUND: f64 = 1.25;
/// Bytes of a prompt that count as its prefix.
const PREFIX_BYTES: usize = 1024;

pub(super) fn pick(field: &Field<'_>, key: u64) -> Option<usize> {
    let (all, weights) = (field.in_flight(), field.total_weight());
    let has_room = |index: &usize| {
        let fair = (all + 1.0) * field.weight(*index) / weights;
        f64::from(field.candidates[*index].in_flight) + 1.0 <= (BOUND * fair).ceil()
    };
    // By the whole weight: a slow start thins a target by its bound, it does not deal out the
    // keys anew.
    let rank = |index: usize| {
        let even = (mixed(key ^ mixed(index as u64 + 1)) >> 11) as f64 / (1u64 << 53) as f64;
        -even.max(f64::MIN_POSITIVE).ln() / f64::from(field.candidates[index].weight)
    };
    let first =
        |found: &mut dyn Iterator<Item = usize>| found.min_by(|a, b| rank(*a).total_cmp(&rank(*b)));
    first(&mut field.open().filter(has_room)).or_else(|| first(&mut field.open()))
}

/// The key of calls that belong together: those of one tenant with the same first kibibyte of
/// prompt. The same in every process and version. Another tenant's same prompt has another key:
/// sharing a server's cache would tell one of the other by its speed.
pub fn key(tenant: &str, prompt: &[u8]) -> u64 {
    // FNV-1a (64 bit).
    let prefix = &prompt[..prompt.len().min(PREFIX_BYTES)];
    let bytes = tenant.bytes().chain([0]).chain(prefix.iter().copied());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed(hash)
}

/// Spreads every bit over all (the finaliser of `SplitMix64`).
const fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn a_key_is_of_a_tenant_and_a_beginning() {
        let long = |last: u8| [&[b'x'; 1024][..], &[last]].concat();
        assert_eq!(key("a", &long(1)), key("a", &long(2)));
        assert_ne!(key("a", b"hello"), key("b", b"hello"));
        assert_ne!(key("a", b"hello"), key("ah", b"ello"));
        assert_eq!(
            key("a", b"hello"),
            978_292_757_801_808_650,
            "replicas of two versions must agree"
        );
    }
}
