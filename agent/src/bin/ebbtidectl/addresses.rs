//! `ebbtidectl ip` and `ebbtidectl release`: one address.

use ebbtide_agent::query::{AddressInfo, AddressState, Released};

use super::format::ago;

pub(super) fn show(info: &AddressInfo) -> String {
    let mut lines = vec![format!("{} {}", info.address, state(info))];
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("  {name:<10} {value}"));
        }
    };
    say("pod", info.pod.clone());
    say("uid", info.uid.clone());
    say("pool", info.pool.clone());
    say("since", info.since.map(ago));
    if let Some(owner) = &info.owner {
        say("container", Some(owner.container_id.clone()));
        say("interface", Some(owner.interface.clone()));
        say("network", Some(owner.network.clone()));
    }
    say("released", info.released_at.map(ago));
    say("held", info.withheld.clone());
    for past in &info.history {
        say(
            "before",
            Some(format!(
                "{} ({}), {} to {}, container {}",
                past.pod.as_deref().unwrap_or("no pod of Kubernetes"),
                past.owner.interface,
                ago(past.since),
                ago(past.until),
                past.owner.container_id,
            )),
        );
    }
    lines.push(String::new());
    lines.join("\n")
}

fn state(info: &AddressInfo) -> String {
    match info.state {
        AddressState::Held => match info.alive {
            Some(true) => "is in use".to_owned(),
            Some(false) => "is in use by a pod whose namespace is gone".to_owned(),
            None => "is in use by a pod that cannot be looked at".to_owned(),
        },
        AddressState::Reserving => "is about to be given to a pod".to_owned(),
        AddressState::Adopted => {
            "is reserved for a running pod that another agent set up".to_owned()
        }
        AddressState::Waiting => "is reserved for its StatefulSet's pod".to_owned(),
        AddressState::Cooldown => format!("cools down for {} s more", info.cooldown_for),
        AddressState::Withheld => "is not given to pods".to_owned(),
        AddressState::Free => "is free".to_owned(),
        AddressState::Reserved => "is kept free by a SpiderReservedIP".to_owned(),
        AddressState::Gateway => "is a gateway".to_owned(),
        AddressState::NotInRange => "is in a pool's subnet, but no pool hands it out".to_owned(),
        AddressState::Unknown => "is in no pool's subnet".to_owned(),
    }
}

pub(super) fn released(released: &Released) -> String {
    let addresses: Vec<String> = released.addresses.iter().map(ToString::to_string).collect();
    format!(
        "released {} of {}{}\n",
        addresses.join(", "),
        released
            .pod
            .as_deref()
            .or(released
                .owner
                .as_ref()
                .map(|owner| owner.container_id.as_str()))
            .unwrap_or("an unknown pod"),
        if released.forced { " (forced)" } else { "" }
    )
}
