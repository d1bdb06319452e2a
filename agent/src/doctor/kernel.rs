//! Whether this kernel is new enough.

/// The oldest supported release: the programs use a map of maps by BTF definition, and `bpf_redirect` to a veth.
const FLOOR: (u32, u32) = (5, 10);

/// Returns why a kernel of this release (`uname -r`) is too old; `None` if it is not, or cannot be told.
#[must_use]
pub fn too_old(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let major: u32 = numbers.next()?.parse().ok()?;
    let minor: u32 = numbers.next()?.parse().ok()?;
    ((major, minor) < FLOOR).then(|| {
        let (floor_major, floor_minor) = FLOOR;
        format!("the kernel {release} is older than {floor_major}.{floor_minor}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_below_the_floor_are_told_by_name() {
        for (release, old) in [
            ("4.18.0-553.el8.x86_64", true),
            ("5.9.16", true),
            ("5.10.0-28-amd64", false),
            ("6.1", false),
            ("6.12.3+deb13-cloud-amd64", false),
            ("10.0.0", false),
            ("unheard of", false),
        ] {
            let found = too_old(release);
            assert_eq!(found.is_some(), old, "{release}");
            assert!(found.is_none_or(|reason| reason.contains(release)));
        }
    }
}
