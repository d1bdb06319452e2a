//! Tells repairs as Events on the Node: who looks why its traffic stumbled finds them by `kubectl describe node`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{agent::Agent, metrics::RepairLine};

/// The pause between two looks at what was repaired.
const PAUSE: Duration = Duration::from_secs(5);

/// How long nothing is told again of an object that something keeps removing.
const SILENCE: Duration = Duration::from_secs(300);

/// Sends an Event for each repair. Ends with the runtime; at once without an API server.
pub async fn tell(agent: &Agent) {
    let Some(cluster) = &agent.cluster else {
        return;
    };
    let mut told = Told::default();
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let recent = agent.metrics.events.last_repairs();
        for line in told.news(&recent, Instant::now()) {
            cluster.send_node_event("Repaired", "Repairing", note(line));
        }
    }
}

/// What was told, by the description of what was found: how often it had been repaired then, and when.
#[derive(Debug, Default)]
struct Told(HashMap<String, (u64, Instant)>);

impl Told {
    /// Returns the repairs to tell now, the earliest first.
    fn news<'a>(&mut self, recent: &'a [RepairLine], now: Instant) -> Vec<&'a RepairLine> {
        self.0.retain(|what, (_, at)| {
            now.duration_since(*at) < SILENCE || recent.iter().any(|line| line.what == *what)
        });
        let mut news = Vec::new();
        for line in recent.iter().rev() {
            let is_news = match self.0.get(&line.what) {
                None => true,
                Some((times, at)) => *times != line.times && now.duration_since(*at) >= SILENCE,
            };
            if is_news {
                self.0.insert(line.what.clone(), (line.times, now));
                news.push(line);
            }
        }
        news
    }
}

fn note(line: &RepairLine) -> String {
    let times = match line.times {
        1 => String::new(),
        times => format!(" ({times} times since the agent's start)"),
    };
    let whose = match line.place.as_str() {
        "node" => "something on this node removes or changes it",
        _ => "the pod, or something beside it, changes it",
    };
    format!("{}: repaired{times}; {whose}", line.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(what: &str, times: u64) -> RepairLine {
        RepairLine {
            at: 0,
            place: "node".into(),
            object: "rule".into(),
            what: what.into(),
            times,
        }
    }

    #[test]
    fn each_repair_is_told_once_and_one_that_repeats_every_five_minutes() {
        let start = Instant::now();
        let mut told = Told::default();
        // Seconds since the start, what was repaired (the latest first), and what is told.
        for (seconds, recent, expected) in [
            (0, vec![], ""),
            (5, vec![line("b", 1), line("a", 1)], "a b"),
            (10, vec![line("b", 1), line("a", 1)], ""),
            (15, vec![line("b", 9), line("a", 1)], ""),
            (20, vec![line("c", 1), line("b", 9), line("a", 1)], "c"),
            (306, vec![line("c", 1), line("b", 70), line("a", 1)], "b"),
            (311, vec![line("c", 1), line("b", 71), line("a", 1)], ""),
            // `a` was displaced, and came again.
            (400, vec![line("c", 1)], ""),
            (405, vec![line("a", 1), line("c", 1)], "a"),
        ] {
            let news = told.news(&recent, start + Duration::from_secs(seconds));
            let news: Vec<&str> = news.iter().map(|line| line.what.as_str()).collect();
            assert_eq!(news.join(" "), expected, "{seconds}");
        }
    }

    #[test]
    fn a_note_says_what_how_often_and_who_may_have_been_it() {
        assert_eq!(
            note(&line("rule 1003 is missing", 1)),
            "rule 1003 is missing: repaired; something on this node removes or changes it"
        );
        let pod = RepairLine {
            place: "pod".into(),
            ..line("a/b had 10.0.0.1", 3)
        };
        assert_eq!(
            note(&pod),
            "a/b had 10.0.0.1: repaired (3 times since the agent's start); the pod, or something beside it, changes it"
        );
    }
}
