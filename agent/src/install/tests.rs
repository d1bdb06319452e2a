use tempfile::TempDir;

use super::*;

struct Host {
    directory: TempDir,
    installation: Installation,
}

impl Host {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let (plugins, configurations) =
            (directory.path().join("bin"), directory.path().join("net"));
        fs::create_dir(&plugins).unwrap();
        fs::create_dir(&configurations).unwrap();
        fs::write(directory.path().join("image"), b"\x7fELF plugin").unwrap();
        let installation =
            Installation::new(plugins, configurations, CONFIGURATION.to_owned()).unwrap();
        Self {
            directory,
            installation,
        }
    }

    fn install(&self) -> (bool, bool) {
        let plugin = self.directory.path().join("image");
        (
            self.installation.install_plugin(&plugin).unwrap(),
            self.installation
                .install_configuration(&configuration(Path::new("/run/ebbtide/cni.sock")))
                .unwrap(),
        )
    }

    /// What a runtime takes for configurations: by their endings, in the order of their names.
    fn seen_by_runtimes(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.installation.configurations)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| {
                ["conf", "conflist", "json"]
                    .iter()
                    .any(|end| name.ends_with(&format!(".{end}")))
            })
            .collect();
        names.sort();
        names
    }

    fn path(&self) -> PathBuf {
        self.installation.configurations.join(CONFIGURATION)
    }
}

#[test]
fn what_is_installed_is_what_was_given_and_a_second_time_changes_nothing() {
    let host = Host::new();
    assert_eq!(host.install(), (true, true));
    let plugin = host.installation.plugins.join(PLUGIN);
    assert_eq!(fs::read(&plugin).unwrap(), b"\x7fELF plugin");
    assert_eq!(
        fs::metadata(&plugin).unwrap().permissions().mode() & 0o7777,
        0o755
    );
    let list: Value = serde_json::from_slice(&fs::read(host.path()).unwrap()).unwrap();
    assert_eq!(list["plugins"][0]["agentSocket"], "/run/ebbtide/cni.sock");
    assert_eq!(host.install(), (false, false));
    assert_eq!(host.seen_by_runtimes(), [CONFIGURATION]);
}

#[test]
fn whatever_an_agent_killed_half_way_left_the_next_one_makes_whole() {
    for (half, whole) in [
        (Some(&b"{\"cniVersion"[..]), None),
        (None, Some(&b""[..])),
        (Some(b""), Some(b"")),
    ] {
        let host = Host::new();
        let path = host.path();
        if let Some(half) = half {
            fs::write(draft(&path), half).unwrap();
            fs::write(draft(&host.installation.plugins.join(PLUGIN)), half).unwrap();
            assert_eq!(host.seen_by_runtimes(), [""; 0], "a draft looks finished");
        }
        if let Some(whole) = whole {
            fs::write(&path, whole).unwrap();
        }
        assert_eq!(host.install(), (true, true));
        assert!(calls_plugin(&fs::read_to_string(&path).unwrap()));
        assert!(!draft(&path).exists());
    }
}

#[test]
fn others_configurations_stay_and_ours_comes_first() {
    let host = Host::new();
    let theirs = host.installation.configurations.join("10-calico.conflist");
    fs::write(&theirs, "theirs").unwrap();
    host.install();
    assert_eq!(
        host.seen_by_runtimes(),
        [CONFIGURATION, "10-calico.conflist"]
    );
    let removed = host.installation.uninstall().unwrap();
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert_eq!(host.seen_by_runtimes(), ["10-calico.conflist"]);
    assert_eq!(fs::read_to_string(theirs).unwrap(), "theirs");
    assert_eq!(
        host.installation.uninstall().unwrap(),
        [""; 0].map(PathBuf::from)
    );
}

#[test]
fn a_file_of_our_name_that_is_not_ours_is_neither_replaced_nor_removed() {
    for theirs in [r#"{"plugins": [{"type": "bridge"}]}"#, "not JSON"] {
        let host = Host::new();
        fs::write(host.path(), theirs).unwrap();
        let error = host.installation.install_configuration("{}").unwrap_err();
        assert!(error.to_string().contains("--cni-conf-name"), "{error}");
        host.installation.uninstall().unwrap_err();
        assert_eq!(fs::read_to_string(host.path()).unwrap(), theirs);
    }
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let host = Host::new();
    let elsewhere = host.directory.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, host.path()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, draft(&host.path())).unwrap();
    host.install();
    assert!(fs::symlink_metadata(host.path()).unwrap().is_file());
    assert_eq!(fs::read(elsewhere).unwrap(), b"");
}

#[test]
fn names_that_no_runtime_reads_are_refused() {
    for name in ["", "00-ebbtide", ".conflist", "a/b.conflist", ".x.conflist"] {
        let made = Installation::new("/b".into(), "/n".into(), name.to_owned());
        assert!(matches!(made, Err(Error::Name(_))), "{name:?}");
    }
}

#[test]
fn a_configuration_of_the_administrators_has_to_call_the_plugin() {
    let host = Host::new();
    let path = host.directory.path().join("own.conflist");
    for (text, good) in [
        (
            r#"{"plugins": [{"type": "ebbtide"}, {"type": "portmap"}]}"#,
            true,
        ),
        (r#"{"plugins": [{"type": "portmap"}]}"#, false),
        (r#"{"type": "ebbtide"}"#, false),
        ("", false),
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(read_configuration(&path).is_ok(), good, "{text}");
    }
}
