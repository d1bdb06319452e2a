//! Mutations: what an attacker may write, or what a damaged disk may leave of a file.

use ebbtide_vpc::random::Random;

/// The longest input in bytes. Readers have their own limits, which inputs must be able to exceed.
const LONGEST: usize = 1 << 20;

/// Texts that fields may not expect: limits of numbers, ends of names and lines.
const WORDS: [&[u8]; 40] = [
    b"0",
    b"-1",
    b"1",
    b"31",
    b"32",
    b"33",
    b"127",
    b"128",
    b"129",
    b"255",
    b"256",
    b"65535",
    b"65536",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\"\"",
    b"\"",
    b"\\u0000",
    b"\x1b[2J",
    b"\n",
    b"\0",
    b"\xff",
    b"..",
    b"/",
    b"lo",
    b"0.0.0.0/0",
    b"::/0",
    b"255.255.255.255",
    b"fe80::1",
    b"169.254.169.254",
    b"127.0.0.1",
    b"%d",
    b"veth0",
];

/// Invalid lengths, types and indices in messages.
const NUMBERS: [u32; 9] = [0, 1, 3, 4, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, u32::MAX];

/// Returns one of `corpus`, damaged one to six times.
#[must_use]
pub fn mutated(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = random.pick(corpus).cloned().unwrap_or_default();
    for _ in 0..=random.below(6) {
        damage(random, &mut bytes, corpus);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let place = random.index(bytes.len() + 1);
    let part = part(random, bytes);
    match random.below(11) {
        0 => {
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => bytes.truncate(place),
        2 => drop(bytes.drain(part)),
        3 => {
            let again = bytes[part].to_vec();
            bytes.splice(place..place, again);
        }
        // Repeats a part many times: finds superlinear work and deep nesting.
        4 => {
            let times = 1 << random.below(13);
            let once = bytes[part].to_vec();
            let times = times.min(LONGEST / (once.len() + 1));
            bytes.splice(place..place, once.repeat(times));
        }
        5 => {
            let other = random.pick(corpus).cloned().unwrap_or_default();
            let theirs = self::part(random, &other);
            bytes.splice(part, other[theirs].iter().copied());
        }
        6 => drop(bytes.splice(part, [])),
        7 => {
            let number = *random.pick(&NUMBERS).unwrap_or(&0);
            let width = 1 << random.below(3);
            let end = (place + width).min(bytes.len());
            let number = number.to_ne_bytes();
            for (byte, with) in bytes[place..end].iter_mut().zip(number) {
                *byte = with;
            }
        }
        // Replaces a value by another one, between delimiters.
        8 | 9 => {
            let is_end = |byte: &u8| b"\",:[]{} \n/=@".contains(byte);
            let start = bytes[..place]
                .iter()
                .rposition(is_end)
                .map_or(0, |at| at + 1);
            let end = bytes[place..]
                .iter()
                .position(is_end)
                .map_or(bytes.len(), |at| place + at);
            let word = random.pick(&WORDS).copied().unwrap_or_default();
            bytes.splice(start..end, word.iter().copied());
        }
        _ => {
            let word = random.pick(&WORDS).copied().unwrap_or_default();
            bytes.splice(place..place, word.iter().copied());
        }
    }
}

/// Returns a part of at most 64 bytes, sometimes of any length.
fn part(random: &mut Random, bytes: &[u8]) -> std::ops::Range<usize> {
    let start = random.index(bytes.len() + 1);
    let longest = match random.below(8) {
        0 => bytes.len() - start,
        _ => (bytes.len() - start).min(64),
    };
    start..start + random.index(longest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_damages_alike_and_nothing_is_left_whole_for_long() {
        let corpus = [b"{\"a\": [1, 2]}".to_vec(), b"".to_vec(), vec![0xff; 3]];
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..2000)
                .map(|_| mutated(&mut random, &corpus))
                .collect::<Vec<_>>()
        };
        let all = run(7);
        assert_eq!(all, run(7));
        assert_ne!(all, run(9));
        let whole = all.iter().filter(|one| corpus.contains(one)).count();
        assert!(whole < all.len() / 2, "{whole} of {} are whole", all.len());
        assert!(all.iter().all(|one| one.len() <= LONGEST));
    }
}
