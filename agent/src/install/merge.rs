//! Updates a network configuration that others have added plugins to, and keeps their entries.
//!
//! Meshes and other installers append their plugin to the first configuration that they find (istio-cni, linkerd-cni),
//! and at best watch it. A pod that starts while their entry is missing is outside of their mesh.

use serde_json::{Map, Value};

use super::PLUGIN;

/// The key that marks entries of Ebbtide's besides those of [`PLUGIN`]. Plugins ignore keys that they do not know.
const MARK: &str = "addedBy";

/// Marks every entry of `ours` except the plugin's own.
pub(super) fn marked(mut ours: Value) -> Value {
    let plugins = ours["plugins"].as_array_mut();
    for entry in plugins.into_iter().flatten() {
        if let Some(entry) = entry.as_object_mut()
            && entry.get("type").is_none_or(|kind| kind != PLUGIN)
        {
            entry.insert(MARK.to_owned(), PLUGIN.into());
        }
    }
    ours
}

/// Returns the configuration that replaces `existing`. Both call the plugin.
///
/// The list's keys come from `ours`. Ebbtide's entries are replaced in their places. If a foreign entry has a type
/// that is also in `ours`, it is the only one of that type. The plugin's entry lists no `capabilities` that a foreign
/// entry has.
pub(super) fn merged(existing: &Value, ours: &Value) -> Value {
    let mut list = existing.as_object().cloned().unwrap_or_default();
    for (key, value) in ours.as_object().into_iter().flatten() {
        list.insert(key.clone(), value.clone());
    }
    let theirs: Vec<&Value> = entries(existing)
        .filter(|entry| is_foreign(entry, ours))
        .collect();
    let mut wanted = entries(ours).filter(|entry| {
        let is_theirs = |other: &&Value| other["type"] == entry["type"];
        !theirs.iter().any(is_theirs)
    });
    let mut plugins = Vec::new();
    for entry in entries(existing) {
        if theirs.contains(&entry) {
            plugins.push(entry.clone());
        } else if entry["type"] == PLUGIN {
            // All of Ebbtide's at the place of the first one: what is behind it stays behind it.
            plugins.extend(
                wanted
                    .by_ref()
                    .map(|entry| without_capabilities(entry, &theirs)),
            );
        }
    }
    list.insert("plugins".to_owned(), plugins.into());
    list.into()
}

/// Returns the entry without the capabilities that one of `theirs` has.
fn without_capabilities(entry: &Value, theirs: &[&Value]) -> Value {
    let mut entry = entry.clone();
    let own = entry.get_mut("capabilities").and_then(Value::as_object_mut);
    if let Some(own) = own {
        own.retain(|name, _| {
            !theirs
                .iter()
                .any(|other| other["capabilities"][name] == true)
        });
    }
    entry
}

/// Returns the types of the plugins that others have added.
pub(super) fn foreign_entries(list: &Value, ours: &Value) -> Vec<String> {
    let theirs = entries(list).filter(|entry| is_foreign(entry, ours));
    theirs
        .map(|entry| {
            entry["type"]
                .as_str()
                .unwrap_or("a plugin without type")
                .to_owned()
        })
        .collect()
}

/// Returns the types of all plugins of a list except [`PLUGIN`].
pub(super) fn foreign_plugins(list: &Value) -> impl Iterator<Item = &str> {
    let types = entries(list).filter_map(|entry| entry["type"].as_str());
    types.filter(|kind| *kind != PLUGIN)
}

fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list["plugins"].as_array().into_iter().flatten()
}

/// Whether an entry is foreign. One that equals Ebbtide's but for the mark is not: called twice, it would do its work
/// twice.
fn is_foreign(entry: &Value, ours: &Value) -> bool {
    let plain = |entry: &Value| -> Map<String, Value> {
        let mut entry = entry.as_object().cloned().unwrap_or_default();
        entry.remove(MARK);
        entry
    };
    let is_marked = entry.get(MARK).is_some_and(|by| by == PLUGIN);
    let is_ours = entry["type"] == PLUGIN || is_marked;
    !is_ours && !entries(ours).any(|own| plain(own) == plain(entry))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn types(list: &Value) -> Vec<&str> {
        entries(list)
            .filter_map(|entry| entry["type"].as_str())
            .collect()
    }

    fn list(plugins: Value) -> Value {
        json!({"cniVersion": "1.0.0", "name": "ebbtide", "plugins": plugins})
    }

    #[test]
    fn what_others_added_stays_in_its_place_as_it_is() {
        let mesh =
            json!({"type": "istio-cni", "log_level": "info", "kubernetes": {"kubeconfig": "/k"}});
        let tuning = json!({"type": "tuning", "sysctl": {"a": "b"}});
        let own = |socket: &str| json!({"type": "ebbtide", "agentSocket": socket});
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let snat_off = json!({"type": "portmap", "snat": false});
        let ours = |plugins: Value| marked(list(plugins));
        for (there, new, expected) in [
            // A new socket of Ebbtide's; foreign plugins on both sides.
            (
                json!([tuning, own("/old"), mesh]),
                ours(json!([own("/new")])),
                json!([tuning, own("/new"), mesh]),
            ),
            // portmap comes with this agent: behind Ebbtide's, before theirs.
            (
                json!([own("/old"), mesh]),
                ours(json!([own("/new"), portmap])),
                json!([own("/new"), ours(json!([portmap]))["plugins"][0], mesh]),
            ),
            // It was Ebbtide's and is switched off.
            (
                ours(json!([own("/old"), portmap]))["plugins"].clone(),
                ours(json!([own("/new")])),
                json!([own("/new")]),
            ),
            // It is a foreign one, configured as they want it.
            (
                json!([own("/old"), mesh, snat_off]),
                ours(json!([own("/new"), portmap])),
                json!([own("/new"), mesh, snat_off]),
            ),
            // As Ebbtide's, without a mark.
            (
                json!([own("/old"), portmap, mesh]),
                ours(json!([own("/new"), portmap])),
                json!([own("/new"), ours(json!([portmap]))["plugins"][0], mesh]),
            ),
            // The plugin twice: once.
            (
                json!([own("/old"), mesh, own("/old")]),
                ours(json!([own("/new")])),
                json!([own("/new"), mesh]),
            ),
        ] {
            let new_list = merged(&list(there.clone()), &new);
            assert_eq!(new_list["plugins"], expected, "{there}");
            assert_eq!(merged(&new_list, &new), new_list, "a second time, {there}");
        }
    }

    #[test]
    fn keys_of_the_list_that_are_not_ours_stay() {
        let there = json!({
            "cniVersion": "0.3.1", "name": "old", "disableCheck": true, "note": [1],
            "plugins": [{"type": "ebbtide"}],
        });
        let new = merged(
            &there,
            &list(json!([{"type": "ebbtide", "agentSocket": "/s"}])),
        );
        assert_eq!(new["disableCheck"], true);
        assert_eq!(new["note"], json!([1]));
        assert_eq!(new["name"], "ebbtide");
        assert_eq!(types(&new), ["ebbtide"]);
    }

    #[test]
    fn others_are_told_from_ours() {
        let ours = marked(list(json!([{"type": "ebbtide"}, {"type": "portmap"}])));
        let there = json!([{"type": "ebbtide"}, {"type": "portmap"}, {"type": "linkerd-cni"}, {}]);
        let there = list(there);
        assert_eq!(
            foreign_entries(&there, &ours),
            ["linkerd-cni", "a plugin without type"]
        );
        assert_eq!(
            foreign_plugins(&there).collect::<Vec<_>>(),
            ["portmap", "linkerd-cni"]
        );
    }
}
