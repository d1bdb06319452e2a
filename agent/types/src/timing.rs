//! Measures how long each step of a request took. Steps are always recorded (two clock readings each), and logged at
//! level debug: `RUST_LOG=info,ebbtide_types::timing=debug`.

use std::{
    cell::RefCell,
    fmt,
    time::{Duration, Instant},
};

use tracing::debug;

tokio::task_local! {
    static STEPS: Steps;
}

#[derive(Debug)]
struct Steps {
    begin: Instant,
    all: RefCell<Vec<Step>>,
}

/// A step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// When it began, after the request's own beginning.
    pub start: Duration,
    /// How long it took.
    pub took: Duration,
}

impl Steps {
    fn note(&self, name: &'static str, start: Instant) {
        self.all.borrow_mut().push(Step {
            name,
            start: start.saturating_duration_since(self.begin),
            took: start.elapsed(),
        });
    }
}

/// Formats the steps as `NAME START+TOOK, ...`, in microseconds after the request began.
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.all.borrow().iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            let (start, took) = (step.start.as_micros(), step.took.as_micros());
            write!(f, "{comma}{} {start}+{took}", step.name)?;
        }
        Ok(())
    }
}

/// Runs the work of one request, and logs afterwards how long its steps took. Returns them too, in the order in which they
/// ended: the request as a whole is the last.
pub async fn request<T>(name: &'static str, work: impl Future<Output = T>) -> (T, Vec<Step>) {
    let steps = Steps {
        begin: Instant::now(),
        all: RefCell::default(),
    };
    let work = async {
        let result = step(name, work).await;
        let took = STEPS.with(|steps| {
            debug!(steps = steps.to_string());
            steps.all.take()
        });
        (result, took)
    };
    STEPS.scope(steps, work).await
}

/// Runs a step of the current request, if there is one.
pub async fn step<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let result = work.await;
    note(name, start);
    result
}

/// As [`step`], for work that does not wait.
pub fn at_once<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    note(name, start);
    result
}

/// Consecutive steps on another thread, which cannot access the request.
#[derive(Debug)]
pub struct Laps {
    all: Vec<(&'static str, Instant, Duration)>,
    last: Instant,
}

impl Laps {
    /// Starts the first step.
    #[must_use]
    pub fn start() -> Self {
        Self {
            all: Vec::new(),
            last: Instant::now(),
        }
    }

    /// Ends a step, and starts the next.
    pub fn lap(&mut self, name: &'static str) {
        self.all.push((name, self.last, self.last.elapsed()));
        self.last = Instant::now();
    }
}

/// Adds the steps of another thread to the current request.
pub fn adopt(laps: Laps) {
    let _ = STEPS.try_with(|steps| {
        let own = laps.all.into_iter().map(|(name, start, took)| Step {
            name,
            start: start.saturating_duration_since(steps.begin),
            took,
        });
        steps.all.borrow_mut().extend(own);
    });
}

fn note(name: &'static str, start: Instant) {
    // Outside of a request nothing is recorded.
    let _ = STEPS.try_with(|steps| steps.note(name, start));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_of_a_request_are_noted_and_others_are_not() {
        at_once("outside", || ());
        let steps = Steps {
            begin: Instant::now(),
            all: RefCell::default(),
        };
        let names: Vec<_> = STEPS
            .scope(steps, async {
                step("a", async { at_once("b", || ()) }).await;
                let mut laps = Laps::start();
                laps.lap("c");
                adopt(laps);
                STEPS.with(|steps| steps.all.borrow().iter().map(|step| step.name).collect())
            })
            .await;
        assert_eq!(names, ["b", "a", "c"]);
    }

    #[tokio::test]
    async fn a_request_tells_its_steps_and_itself_last() {
        let work = async {
            step("a", async {}).await;
            at_once("b", || 7)
        };
        let (result, took) = request("all", work).await;
        assert_eq!(result, 7);
        let names: Vec<_> = took.iter().map(|step| step.name).collect();
        assert_eq!(names, ["a", "b", "all"]);
        assert!(took[2].took >= took[0].took);
        assert!(took[1].start >= took[0].start + took[0].took);
    }

    #[test]
    fn steps_are_told_with_their_start_and_how_long_they_took() {
        let step = |name, start, took| Step {
            name,
            start: Duration::from_micros(start),
            took: Duration::from_micros(took),
        };
        let steps = Steps {
            begin: Instant::now(),
            all: RefCell::new(vec![step("plan", 0, 7), step("disk", 7, 1200)]),
        };
        assert_eq!(steps.to_string(), "plan 0+7, disk 7+1200");
    }
}
