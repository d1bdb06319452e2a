//! Damaged files, and files of other versions.

use std::fs;

use super::*;

const POOL: &str = "p: {subnet: 10.0.0.0/16, ips: [10.0.0.1-10.0.9.255], default: true}";

fn open(lab: &Lab) -> Result<Pools, OpenError> {
    Pools::open(lab.dir.path(), Options::default())
}

/// Five allocations, and the files as `kill -9` leaves them.
fn killed(lab: &Lab) -> (Vec<Allocation>, Vec<u8>, Vec<u8>) {
    let pools = lab.open();
    for number in 0..5 {
        add(&pools, &catalog(POOL), &number.to_string());
    }
    let read = |name: &str| fs::read(lab.dir.path().join(name)).unwrap();
    (pools.list(), read("pool.journal"), read("pool.mark"))
}

fn lab_with(journal: &[u8], mark: Option<&[u8]>) -> Lab {
    let lab = Lab::new();
    fs::write(lab.dir.path().join("pool.journal"), journal).unwrap();
    if let Some(mark) = mark {
        fs::write(lab.dir.path().join("pool.mark"), mark).unwrap();
    }
    lab
}

#[test]
fn what_a_killed_agent_leaves_is_whole() {
    let (before, journal, mark) = killed(&Lab::new());
    assert_eq!(lab_with(&journal, Some(&mark)).open().list(), before);
}

#[test]
fn a_flipped_bit_anywhere_is_called_damage_and_the_file_is_left_as_it_is() {
    let (before, journal, mark) = killed(&Lab::new());
    for position in 0..journal.len() {
        let mut bad = journal.clone();
        bad[position] ^= 1 << (position % 8);
        let lab = lab_with(&bad, Some(&mark));
        match open(&lab) {
            // Only the letters of a checksum mean the same in upper and lower case.
            Ok(pools) => assert_eq!(pools.list(), before, "bit in byte {position}"),
            Err(OpenError::Corrupt { .. }) => {
                let left = fs::read(lab.dir.path().join("pool.journal")).unwrap();
                assert_eq!(left, bad, "for the next start to refuse, too");
            }
            Err(other) => panic!("byte {position}: {other}"),
        }
    }
}

/// Without the mark (the power failed, too) a batch proves only those before it: a loss of the last goes unnoticed.
#[test]
fn what_is_lost_is_said() {
    let (before, journal, mark) = killed(&Lab::new());
    let text = String::from_utf8(journal.clone()).unwrap();
    let damaged = |what: &str| {
        let place = text.find(what).unwrap();
        let mut bad = journal.clone();
        bad[place + what.len() / 2] ^= 1;
        bad
    };
    let third = damaged("10.0.0.3");
    let last = damaged("10.0.0.5");
    let cut = journal[..journal.len() - 9].to_vec();
    for (bad, mark, expected) in [
        (
            &third,
            Some(&mark),
            Some("batch 3 of acknowledged changes cannot be read any more"),
        ),
        (
            &third,
            None,
            Some("batch 3 of acknowledged changes cannot be read any more"),
        ),
        (
            &last,
            Some(&mark),
            Some("batch 5 of acknowledged changes cannot be read any more"),
        ),
        (
            &cut,
            Some(&mark),
            Some("batch 5 of acknowledged changes cannot be read any more"),
        ),
        // Looks as if it had never been acknowledged.
        (&cut, None, None),
        (&last, None, None),
    ] {
        let lab = lab_with(bad, mark.map(Vec::as_slice));
        match (open(&lab), expected) {
            (Err(error), Some(expected)) => {
                let error = error.to_string();
                assert!(
                    error.contains(expected) && error.contains("move it aside"),
                    "{error}"
                );
            }
            (Ok(pools), None) => assert_eq!(pools.list(), before[..4]),
            (result, expected) => panic!("{result:?}, not {expected:?}"),
        }
    }
}

#[test]
fn a_change_that_was_cut_off_is_left_out_and_the_next_takes_its_place() {
    let (before, journal, _) = killed(&Lab::new());
    for length in (1..journal.len()).rev().step_by(97) {
        let lab = lab_with(&journal[..length], None);
        let Ok(pools) = open(&lab) else {
            continue;
        };
        let found = pools.list();
        assert_eq!(found, before[..found.len()], "{length} bytes");
        add(&pools, &catalog(POOL), "next");
        let now = pools.list();
        drop(pools);
        assert_eq!(open(&lab).unwrap().list(), now, "{length} bytes");
    }
}

#[test]
fn what_is_not_ours_or_holds_nonsense_is_called_damaged() {
    let (_, journal, _) = killed(&Lab::new());
    for content in [
        &b"no journal at all"[..],
        &[0xff; 8192],
        b"",
        b"% {\"schema\":3,\"store\":1}\n",
        &journal[journal.len() / 2..],
    ] {
        let error = open(&lab_with(content, None)).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
}

/// A file with a single, correctly closed batch of these lines.
fn journal_of(lines: &str) -> Vec<u8> {
    let covered = format!("{lines}= 1 ");
    let checksum = crc32fast::hash(covered.as_bytes());
    format!("{covered}{checksum:08x}\n").into_bytes()
}

#[test]
fn another_schema_is_refused_and_left_as_it_is() {
    let future = journal_of("% {\"schema\":7,\"store\":1,\"more\":[]}\n! something new\n");
    let lab = lab_with(&future, None);
    let error = open(&lab).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Schema {
                found: 7,
                supported: 3,
                ..
            }
        ),
        "{error}"
    );
    let left = fs::read(lab.dir.path().join("pool.journal")).unwrap();
    assert_eq!(left, future);
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    let head = "% {\"schema\":3,\"store\":1}\n";
    for (line, expected) in [
        ("+ {\"owner\":1}\tnull\n", "invalid type"),
        ("+ {}\n", "it has no record"),
        ("? {}\n", "its kind is unknown"),
        ("nonsense\n", "not in the journal's format"),
    ] {
        let lab = lab_with(&journal_of(&format!("{head}{line}")), None);
        let error = open(&lab).unwrap_err().to_string();
        assert!(
            error.contains("batch 1: ") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn one_address_with_two_owners_on_disk_is_called_damaged() {
    let put = |container: &str| {
        let assigned = "{\"address\":\"10.0.0.1\",\"prefix_len\":24,\"pool\":\"p\",\"gateway\":null,\"routes\":[]}";
        let owner = serde_json::to_string(&owner(container)).unwrap();
        format!("+ {{\"owner\":{owner},\"since\":1,\"assigned\":[{assigned}]}}\tnull\n")
    };
    let lines = format!("% {{\"schema\":3,\"store\":1}}\n{}{}", put("a"), put("b"));
    let error = open(&lab_with(&journal_of(&lines), None)).unwrap_err();
    assert!(
        error.to_string().contains("has another owner as well"),
        "{error}"
    );
}

/// A journal that was moved aside, as the error advises, is not required by the mark.
#[test]
fn after_a_damaged_journal_was_moved_aside_a_new_one_begins() {
    let lab = Lab::new();
    let (_, journal, _) = killed(&lab);
    let path = lab.dir.path().join("pool.journal");
    fs::write(&path, &journal[..journal.len() / 2]).unwrap();
    open(&lab).unwrap_err();
    fs::rename(&path, lab.dir.path().join("aside")).unwrap();
    for _ in 0..2 {
        assert_eq!(open(&lab).unwrap().list(), []);
    }
    // Moved back, the old one is refused: its last change is missing.
    fs::rename(lab.dir.path().join("aside"), &path).unwrap();
}

/// An older copy of the same journal is refused: its mark is newer.
#[test]
fn an_older_copy_is_refused() {
    let lab = Lab::new();
    let pools = lab.open();
    add(&pools, &catalog(POOL), "a");
    let path = lab.dir.path().join("pool.journal");
    let old = fs::read(&path).unwrap();
    add(&pools, &catalog(POOL), "b");
    drop(pools);
    fs::write(&path, old).unwrap();
    let error = open(&lab).unwrap_err();
    assert!(error.to_string().contains("batch 2 of"), "{error}");
}
