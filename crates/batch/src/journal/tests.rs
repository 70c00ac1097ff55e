//! The journal cut and flipped at every byte.

use super::*;
use crate::request::RequestHash;
use tidegate_core::Usage;

fn head(index: u64) -> Head {
    Head {
        index,
        hash: RequestHash([index as u8; 16]),
        custom_id: identity(Some("a")),
        status: if index % 3 == 2 { Status::Failed } else { Status::Ok },
        cached: index == 1,
        attempts: 2,
        usage: Usage { input: 5, cached_input: 1, cache_write: 0, output: 7, reasoning: 2 },
        cost: (index != 0).then_some(0.25),
    }
}

/// A journal of four records and their places.
fn written(path: &Path) -> Vec<Place> {
    let (file, end, _) = open(path, |_, _, _| {}).unwrap();
    let mut writer = Writer::start(file, end, None).unwrap();
    let places = (0..4)
        .map(|index| {
            writer.append(&head(index), |out| {
                out.extend_from_slice(format!("{{\"index\":{index}}}\n").as_bytes());
            })
        })
        .collect();
    writer.finish().unwrap();
    places
}

fn indexes(path: &Path) -> (Vec<u64>, Repaired) {
    let mut seen = Vec::new();
    let (.., repaired) = open(path, |_, head, _| seen.push(head.index)).unwrap();
    (seen, repaired)
}

#[test]
fn what_is_appended_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let places = written(&path);
    let mut seen = Vec::new();
    open(&path, |place, head, line| seen.push((place, head, line.to_vec()))).unwrap();
    for (index, (place, found, line)) in seen.into_iter().enumerate() {
        assert_eq!(place, places[index]);
        assert_eq!(found, head(index as u64));
        assert_eq!(line, format!("{{\"index\":{index}}}\n").into_bytes());
    }
    let mut window = Window::new(File::open(&path).unwrap());
    for index in [3, 0, 2, 1] {
        assert_eq!(window.record(places[index]).unwrap().0.index, index as u64);
    }
}

#[test]
fn a_tail_torn_at_any_byte_loses_only_its_own_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let places = written(&path);
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let (seen, repaired) = indexes(&path);
        let kept =
            places.iter().filter(|place| place.offset + u64::from(place.len) <= cut as u64).count();
        assert_eq!(seen, (0..kept as u64).collect::<Vec<_>>(), "cut at {cut}");
        let end = places.get(kept).map_or(whole.len() as u64, |place| place.offset);
        let torn = if cut < FILE_HEAD.len() { 0 } else { cut as u64 - end };
        assert_eq!(repaired, Repaired { torn_bytes: torn, damaged_bytes: 0 }, "cut at {cut}");

        // What is appended after the repair is found again.
        let (file, end, _) = open(&path, |_, _, _| {}).unwrap();
        let mut writer = Writer::start(file, end, None).unwrap();
        writer.append(&head(9), |out| out.push(b'\n'));
        writer.finish().unwrap();
        assert_eq!(indexes(&path).0.last(), Some(&9), "cut at {cut}");
    }
}

#[test]
fn a_byte_flipped_anywhere_loses_one_record_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let places = written(&path);
    let whole = std::fs::read(&path).unwrap();
    for at in FILE_HEAD.len()..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let hit = places
            .iter()
            .position(|place| (at as u64) < place.offset + u64::from(place.len))
            .unwrap();
        let (seen, repaired) = indexes(&path);
        let expected: Vec<_> = (0..4).filter(|&index| index != hit as u64).collect();
        assert_eq!(seen, expected, "flipped at {at}");
        let lost = u64::from(places[hit].len);
        let told = if hit == 3 { repaired.torn_bytes } else { repaired.damaged_bytes };
        assert_eq!(told, lost, "flipped at {at}");
    }
}

#[test]
fn a_foreign_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    std::fs::write(&path, "something else entirely").unwrap();
    let error = open(&path, |_, _, _| {}).unwrap_err().to_string();
    assert!(error.contains("not a journal"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"something else entirely");
}

#[test]
fn the_sink_sees_every_record_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let (file, end, _) = open(&path, |_, _, _| {}).unwrap();
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let sees = seen.clone();
    let sink: Sink = Box::new(move |head, line| {
        sees.lock().push((head.index, line.len()));
        Ok(())
    });
    let mut writer = Writer::start(file, end, Some(sink)).unwrap();
    for index in 0..1000 {
        writer.append(&head(index), |out| out.resize(out.len() + index as usize, b' '));
    }
    writer.finish().unwrap();
    assert!(seen.lock().iter().copied().eq((0..1000).map(|index| (index, index as usize))));
}
