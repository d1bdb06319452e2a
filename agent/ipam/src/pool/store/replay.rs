//! Replays a journal and detects whether part of it is missing.
//!
//! A batch is written only once the one before it is on disk. So what follows the last whole batch was
//! being written when the process or the power failed. It was not acknowledged, and is left out. But if
//! a later batch or the mark shows that it was acknowledged, something was lost, and that is an error.

use super::{Contents, SCHEMA, journal::Mark, lines::head};

/// The result of replaying a journal.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    pub(super) contents: Contents,
    /// The journal's number and its last whole batch.
    pub(super) mark: Mark,
    /// The offset after that batch.
    pub(super) length: usize,
}

/// Why a journal cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// It has this schema version.
    Schema(u64),
    /// What is wrong, and what is lost.
    Lost(String),
}

/// The line that closes a batch.
struct End {
    /// The offsets of this line and of the next one.
    place: usize,
    next: usize,
    number: u64,
    checksum: u32,
}

/// Appends the line that closes a batch. The checksum covers everything before itself.
pub(super) fn close(lines: &mut Vec<u8>, number: u64) {
    lines.extend_from_slice(format!("= {number} ").as_bytes());
    let checksum = crc32fast::hash(lines);
    lines.extend_from_slice(format!("{checksum:08x}\n").as_bytes());
}

fn ends(text: &[u8]) -> impl Iterator<Item = End> + '_ {
    memchr::memmem::find_iter(text, b"\n= ").filter_map(|newline| {
        let place = newline + 1;
        let length = memchr::memchr(b'\n', &text[place..])?;
        let (number, checksum) = end(&text[place..place + length])?;
        Some(End {
            place,
            next: place + length + 1,
            number,
            checksum,
        })
    })
}

fn end(line: &[u8]) -> Option<(u64, u32)> {
    let text = std::str::from_utf8(line.strip_prefix(b"= ")?).ok()?;
    let (number, checksum) = text.split_once(' ')?;
    Some((
        number.parse().ok()?,
        u32::from_str_radix(checksum, 16).ok()?,
    ))
}

impl End {
    /// Whether its checksum matches what begins at `start`.
    fn fits(&self, text: &[u8], start: usize) -> bool {
        // "= 17 ", with the number's digits: what the checksum of `close` covers.
        let covered = self.place + "= ".len() + self.number.to_string().len() + " ".len();
        text.get(start..covered)
            .is_some_and(|covered| crc32fast::hash(covered) == self.checksum)
    }
}

/// Replays a journal; `noted` is the mark beside it.
pub(super) fn replay(text: &[u8], noted: Option<Mark>) -> Result<Replayed, Damage> {
    let Some(head) = head(text) else {
        return Err(Damage::Lost("it does not begin as a journal does".into()));
    };
    let mut replayed = Replayed::default();
    replayed.mark.store = head.store;
    let mut previous_end = 0;
    for end in ends(text) {
        let first_missing = replayed.mark.batch + 1;
        let is_next = replayed.length == 0 || end.number == first_missing;
        if previous_end == replayed.length && is_next && end.fits(text, replayed.length) {
            // Every schema version closes the first batch like this.
            if head.schema != SCHEMA {
                return Err(Damage::Schema(head.schema));
            }
            let lines = &text[replayed.length..end.place];
            apply(&mut replayed.contents, lines, end.number)?;
            replayed.mark.batch = end.number;
            replayed.length = end.next;
        } else if replayed.length > 0 && end.number > first_missing {
            // Whatever happened to this one, the one before it was on disk when it was written.
            return Err(Damage::Lost(if end.fits(text, previous_end) {
                lost(first_missing, end.number - 1)
            } else {
                format!(
                    "from batch {first_missing} on, acknowledged changes cannot be read any more"
                )
            }));
        }
        previous_end = end.next;
    }
    if replayed.length == 0 {
        return Err(Damage::Lost("its beginning cannot be read".into()));
    }
    match noted {
        Some(noted) if noted.store == head.store && noted.batch > replayed.mark.batch => {
            Err(Damage::Lost(lost(replayed.mark.batch + 1, noted.batch)))
        }
        _ => Ok(replayed),
    }
}

fn lost(first: u64, last: u64) -> String {
    let which = if first == last {
        format!("batch {first}")
    } else {
        format!("batches {first} to {last}")
    };
    format!("{which} of acknowledged changes cannot be read any more")
}

fn apply(contents: &mut Contents, lines: &[u8], number: u64) -> Result<(), Damage> {
    let wrong = |detail: String| Damage::Lost(format!("batch {number}: {detail}"));
    let lines = std::str::from_utf8(lines).map_err(|error| wrong(error.to_string()))?;
    for line in lines.lines() {
        contents.apply(line).map_err(|reason| {
            let line: String = line.chars().take(200).collect();
            wrong(format!("{line:?}: {reason}"))
        })?;
    }
    Ok(())
}
