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
            self.install_configuration().changed,
        )
    }

    fn install_configuration(&self) -> Installed {
        let socket = Path::new("/run/ebbtide/cni.sock");
        let ours = configuration(socket, self.installation.has_portmap());
        self.installation
            .install_configuration(&ours, true)
            .unwrap()
    }

    fn list(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path()).unwrap()).unwrap()
    }

    fn types(&self) -> Vec<String> {
        let list = self.list();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Acts as an installer: reads the list, appends its plugin, writes it.
    fn append(&self, plugin: Value) {
        let mut list = self.list();
        list["plugins"].as_array_mut().unwrap().push(plugin);
        fs::write(self.path(), list.to_string()).unwrap();
    }

    /// Returns the files that a runtime takes for configurations: by their suffixes, in the order of their names.
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
            fs::write(draft_of(&path), half).unwrap();
            fs::write(draft_of(&host.installation.plugins.join(PLUGIN)), half).unwrap();
            assert_eq!(host.seen_by_runtimes(), [""; 0], "a draft looks finished");
        }
        if let Some(whole) = whole {
            fs::write(&path, whole).unwrap();
        }
        assert_eq!(host.install(), (true, true));
        assert!(parse(&fs::read_to_string(&path).unwrap()).is_ok());
        assert!(!draft_of(&path).exists());
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
    for (theirs, reason) in [
        (
            r#"{"plugins": [{"type": "bridge"}]}"#,
            "no plugin of the type",
        ),
        (
            r#"{"plugins": [{"type": "ebbtide"}, ]}"#,
            "not JSON: trailing comma",
        ),
        ("not JSON", "line 1"),
    ] {
        let host = Host::new();
        fs::write(host.path(), theirs).unwrap();
        let error = host
            .installation
            .install_configuration(&Value::Null, true)
            .unwrap_err();
        for part in ["--cni-conf-name", reason] {
            assert!(error.to_string().contains(part), "{error}");
        }
        host.installation.uninstall().unwrap_err();
        assert_eq!(fs::read_to_string(host.path()).unwrap(), theirs);
    }
}

/// The installation and its status, as an agent has them.
fn prepared(host: &Host) -> (options::Prepared, InstallStatus) {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: options::Options,
    }
    let line = [
        "agent".as_ref(),
        "--cni-bin-dir".as_ref(),
        host.installation.plugins.as_os_str(),
        "--cni-conf-dir".as_ref(),
        host.installation.configurations.as_os_str(),
        "--plugin".as_ref(),
        host.directory.path().join("image").as_os_str(),
    ]
    .map(std::ffi::OsStr::to_owned);
    let options = <Line as clap::Parser>::parse_from(line).options;
    let prepared = options.prepare(Path::new("/run/ebbtide/cni.sock"));
    (prepared.unwrap().unwrap(), InstallStatus::default())
}

#[test]
fn what_others_broke_is_waited_for_and_named_and_installed_once_it_is_right() {
    let conf = |text: &'static str| move |host: &Host| fs::write(host.path(), text).unwrap();
    type Break = Box<dyn Fn(&Host)>;
    let cases: Vec<(&str, Break)> = vec![
        (
            "a byte order mark",
            Box::new(conf("\u{feff}{\"plugins\":[{\"type\":\"ebbtide\"}]}")),
        ),
        (
            "trailing comma",
            Box::new(conf(r#"{"plugins":[{"type":"ebbtide"},]}"#)),
        ),
        ("a list that is an array", Box::new(conf("[]"))),
        (
            "a configuration alone",
            Box::new(conf(r#"{"type":"ebbtide"}"#)),
        ),
        (
            "plugins that are no list",
            Box::new(conf(r#"{"plugins":{"type":"ebbtide"}}"#)),
        ),
        (
            "not UTF-8",
            Box::new(|host| fs::write(host.path(), b"\xff\xfe").unwrap()),
        ),
        (
            "a directory",
            Box::new(|host| fs::create_dir(host.path()).unwrap()),
        ),
        (
            "a directory for the draft",
            Box::new(|host| fs::create_dir(draft_of(&host.path())).unwrap()),
        ),
        (
            "a directory for the plugin",
            Box::new(|host| fs::create_dir(host.installation.plugins.join(PLUGIN)).unwrap()),
        ),
        (
            "no program",
            Box::new(|host| fs::remove_file(host.directory.path().join("image")).unwrap()),
        ),
    ];
    for (what, breaks) in cases {
        let host = Host::new();
        breaks(&host);
        let (prepared, status) = prepared(&host);
        prepared.install(&status);
        let fault = status
            .fault()
            .unwrap_or_else(|| panic!("{what}: installed"));
        assert!(
            fault.contains(&*host.directory.path().to_string_lossy()),
            "{what}: {fault}"
        );
        // The fault is repaired.
        for path in [
            host.path(),
            draft_of(&host.path()),
            host.installation.plugins.join(PLUGIN),
        ] {
            let _gone = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        }
        fs::write(host.directory.path().join("image"), b"\x7fELF plugin").unwrap();
        prepared.install(&status);
        assert_eq!(status.fault(), None, "{what}");
        assert_eq!(host.types(), ["ebbtide"], "{what}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_made_if_the_one_above_it_is() {
    let host = Host::new();
    fs::remove_dir(&host.installation.plugins).unwrap();
    fs::remove_dir(&host.installation.configurations).unwrap();
    let (prepared, status) = prepared(&host);
    prepared.install(&status);
    assert_eq!(status.fault(), None);
    assert_eq!(host.types(), ["ebbtide"]);
    let mut elsewhere = Host::new();
    elsewhere.installation.configurations = elsewhere.directory.path().join("not/there");
    let (prepared, status) = self::prepared(&elsewhere);
    prepared.install(&status);
    let fault = status.fault().unwrap();
    assert!(fault.contains("not/there"), "{fault}");
    assert!(!elsewhere.directory.path().join("not").exists());
}

#[test]
fn a_configuration_that_says_null_is_none() {
    let host = Host::new();
    fs::write(host.path(), "null\n").unwrap();
    assert!(host.install_configuration().changed);
    assert_eq!(host.types(), ["ebbtide"]);
}

#[test]
fn plugins_that_others_added_survive_a_new_agent_and_are_kept_when_it_is_removed() {
    let host = Host::new();
    host.install();
    assert_eq!(host.list()["cniVersions"], json!(["1.0.0", "1.1.0"]));
    host.append(json!({"type": "istio-cni", "kubernetes": {"kubeconfig": "/k"}}));
    let written = fs::read_to_string(host.path()).unwrap();
    let installed = host.install_configuration();
    assert_eq!(installed.others, ["istio-cni"]);
    // The plugin is not on the host: its versions are unknown, and no newer one is offered than before it was added.
    assert_eq!(installed.without_status, ["istio-cni"]);
    assert_eq!(host.list()["cniVersions"], json!(["1.0.0"]));
    assert_eq!(host.list()["cniVersion"], "1.0.0");
    assert_eq!(host.types(), ["ebbtide", "istio-cni"]);
    assert_ne!(fs::read_to_string(host.path()).unwrap(), written);
    assert!(!host.install_configuration().changed, "a second time");
    // The host gets portmap: it is inserted between.
    fs::write(host.installation.plugins.join("portmap"), "").unwrap();
    host.install_configuration();
    assert_eq!(host.types(), ["ebbtide", "portmap", "istio-cni"]);
    let last = fs::read_to_string(host.path()).unwrap();
    host.installation.uninstall().unwrap();
    assert_eq!(host.seen_by_runtimes(), [""; 0]);
    let kept = host
        .path()
        .with_file_name(format!("{CONFIGURATION}.removed"));
    assert_eq!(fs::read_to_string(kept).unwrap(), last);
}

#[test]
fn host_ports_are_portmap_s_where_the_host_has_it_and_ours_to_speak_of_where_not() {
    let host = Host::new();
    host.install();
    let has = |at: usize| host.list()["plugins"][at]["capabilities"]["portMappings"] == true;
    assert!(has(0) && host.types() == ["ebbtide"]);
    fs::write(host.installation.plugins.join("portmap"), "").unwrap();
    host.install_configuration();
    assert!(!has(0) && has(1) && host.types() == ["ebbtide", "portmap"]);
    // Switched off, or removed from the host.
    fs::remove_file(host.installation.plugins.join("portmap")).unwrap();
    host.install_configuration();
    assert!(has(0) && host.types() == ["ebbtide"]);
}

#[test]
fn bandwidth_is_ours_to_speak_of_unless_a_plugin_of_others_has_it() {
    let host = Host::new();
    host.install();
    let has = |at: usize| host.list()["plugins"][at]["capabilities"]["bandwidth"] == true;
    assert!(has(0));
    let mut list = host.list();
    let theirs = serde_json::json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    list["plugins"].as_array_mut().unwrap().push(theirs);
    fs::write(host.path(), list.to_string()).unwrap();
    host.install_configuration();
    assert!(!has(0) && has(1) && host.types() == ["ebbtide", "bandwidth"]);
    fs::remove_file(host.path()).unwrap();
    host.install_configuration();
    assert!(has(0));
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let host = Host::new();
    let elsewhere = host.directory.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, host.path()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, draft_of(&host.path())).unwrap();
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
