//! The matrix: all cells, tested at several moments, and what changed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use ebbtide_vpc::{patience::PATIENCE, progress::print};

use super::{
    cell::{By, Cell, Connection, Seen},
    door::Doors,
};

/// The time limit of a cell's first attempt. Attempts run at the same time.
const FIRST: Duration = Duration::from_secs(3);
/// The time limit of the second attempt: a busy machine must not look like a failure.
const SECOND: Duration = PATIENCE;
/// How many cells are tested at once.
const AT_ONCE: usize = 96;
/// How many failed cells are tested again at once: most of them only wait.
const WAITING: usize = 512;

/// The result of a cell.
pub type Outcome = std::result::Result<Seen, String>;

/// All cells, and their results before the agent.
#[derive(Debug)]
pub struct Matrix {
    cells: Vec<Cell>,
    doors: Arc<Doors>,
    before: Vec<Outcome>,
    /// Open connections from before the agent, by their cell.
    kept: BTreeMap<usize, Mutex<Option<Connection>>>,
    changes: Vec<Change>,
    moments: Vec<String>,
}

/// A cell whose result changed.
#[derive(Clone, Debug)]
struct Change {
    cell: usize,
    moment: usize,
    what: String,
}

impl Matrix {
    /// Tests all cells before there is an agent.
    ///
    /// # Errors
    /// If a cell fails for which `excused` has no reason; the error lists all of these.
    pub fn before(
        cells: Vec<Cell>,
        doors: Arc<Doors>,
        excused: impl Fn(&Cell) -> Option<&'static str>,
    ) -> Result<Self> {
        let before = outcomes(&cells, &doors);
        let mut broken = Vec::new();
        for (cell, outcome) in cells.iter().zip(&before) {
            match (outcome, excused(cell)) {
                (Err(error), None) => broken.push(format!("{cell}: {error}")),
                (Err(_), Some(reason)) => {
                    print(&format!("not working without us: {cell}: {reason}\n"))
                }
                (Ok(_), _) => {}
            }
        }
        if !broken.is_empty() {
            bail!(
                "{} of {} cells do not work before there is an agent, and prove nothing:\n{}",
                broken.len(),
                cells.len(),
                broken.join("\n")
            );
        }
        let kept = kept(&cells, &before, &doors);
        Ok(Self {
            cells,
            doors,
            before,
            kept,
            changes: Vec::new(),
            moments: Vec::new(),
        })
    }

    /// Returns the number of cells, and how many of these have a connection from before the agent.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.cells.len(), self.kept.len())
    }

    /// Tests all cells again, and records the differences from before.
    pub fn again(&mut self, moment: &str) {
        let number = self.moments.len();
        self.moments.push(moment.to_owned());
        for (cell, outcome) in outcomes(&self.cells, &self.doors).into_iter().enumerate() {
            let what = match (&self.before[cell], outcome) {
                (Ok(_), Err(error)) => error,
                (Ok(then), Ok(now)) if *then != now => {
                    format!("seen as {}, was {}", name(now), name(*then))
                }
                _ => continue,
            };
            self.changes.push(Change {
                cell,
                moment: number,
                what,
            });
        }
        let kept: Vec<_> = self.kept.iter().collect();
        let asked = at_once(kept.len(), WAITING, |number| {
            let mut kept = lock(kept[number].1);
            match kept.as_mut()?.ask(SECOND) {
                Ok(_) => None,
                Err(error) => {
                    // The answer may come later, when nobody waits for it.
                    *kept = None;
                    Some(format!("a connection from before the agent: {error:#}"))
                }
            }
        });
        let broken = kept.iter().zip(asked);
        let broken: Vec<(usize, String)> = broken
            .filter_map(|((cell, _), what)| Some((**cell, what?)))
            .collect();
        self.changes
            .extend(broken.into_iter().map(|(cell, what)| Change {
                cell,
                moment: number,
                what,
            }));
    }

    /// Asserts that no cell changed at any moment.
    ///
    /// # Errors
    /// If anything changed; the error has the matrix: each group of cells, how many are unchanged, and each change.
    pub fn unchanged(&self) -> Result<()> {
        print(&(self.table() + "\n"));
        if self.changes.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for change in &self.changes {
            let Change { cell, moment, what } = change;
            let _ = writeln!(
                text,
                "{}: {}: {what}",
                self.moments[*moment], self.cells[*cell]
            );
        }
        bail!(
            "{} times somebody else's traffic is not what it was:\n{text}{}",
            self.changes.len(),
            self.table()
        );
    }

    /// Formats a row for each group: its number of cells, and how many are unchanged at each moment.
    fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Disabled);
        let moments = self.moments.iter().map(String::as_str);
        table.set_header(["", "before"].into_iter().chain(moments));
        let mut groups: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !groups.contains(&cell.group.as_str()) {
                groups.push(&cell.group);
            }
        }
        for group in groups {
            let mine = |cell: &usize| self.cells[*cell].group == group;
            let all = (0..self.cells.len()).filter(mine).count();
            let mut row = vec![group.to_owned(), all.to_string()];
            for moment in 0..self.moments.len() {
                let mut broken: Vec<usize> = self
                    .changes
                    .iter()
                    .filter(|change| change.moment == moment && mine(&change.cell))
                    .map(|change| change.cell)
                    .collect();
                broken.dedup();
                row.push(match broken.len() {
                    0 => "same".into(),
                    count => format!("{count} changed"),
                });
            }
            table.add_row(row);
        }
        table.to_string()
    }
}

/// Tests cells that are not compared and must all work: those of Ebbtide's pods.
///
/// # Errors
/// If any does not; the error lists them.
pub fn all_work(cells: &[Cell], doors: &Doors) -> Result<()> {
    let outcomes = outcomes(cells, doors);
    let broken: Vec<String> = cells
        .iter()
        .zip(outcomes)
        .filter_map(|(cell, outcome)| Some(format!("{cell}: {}", outcome.err()?)))
        .collect();
    if !broken.is_empty() {
        bail!(
            "{} of {} do not work:\n{}",
            broken.len(),
            cells.len(),
            broken.join("\n")
        );
    }
    Ok(())
}

/// Tests all cells; cells without an answer are tested a second time.
fn outcomes(cells: &[Cell], doors: &Doors) -> Vec<Outcome> {
    let ask = |cell: &Cell, patience| {
        cell.ask(doors, patience)
            .map_err(|error| format!("{error:#}"))
    };
    let mut outcomes = at_once(cells.len(), AT_ONCE, |number| ask(&cells[number], FIRST));
    let failed: Vec<usize> = (0..cells.len())
        .filter(|number| outcomes[*number].is_err())
        .collect();
    let again = at_once(failed.len(), WAITING, |number| {
        ask(&cells[failed[number]], SECOND)
    });
    for (number, outcome) in failed.into_iter().zip(again) {
        outcomes[number] = outcome;
    }
    outcomes
}

fn kept(
    cells: &[Cell],
    before: &[Outcome],
    doors: &Doors,
) -> BTreeMap<usize, Mutex<Option<Connection>>> {
    // Two of each group are enough, since the cells of a group use the same path.
    let mut by_tcp: Vec<usize> = Vec::new();
    for (number, cell) in cells.iter().enumerate() {
        let known = by_tcp
            .iter()
            .filter(|known| cells[**known].group == cell.group);
        if cell.by == By::Tcp && before[number].is_ok() && known.count() < 2 {
            by_tcp.push(number);
        }
    }
    let opened = at_once(by_tcp.len(), AT_ONCE, |number| {
        let mut connection = cells[by_tcp[number]].connect(doors, SECOND).ok()?;
        connection.ask(SECOND).ok()?;
        Some(connection)
    });
    by_tcp
        .into_iter()
        .zip(opened)
        .filter_map(|(number, connection)| Some((number, Mutex::new(Some(connection?)))))
        .collect()
}

/// Runs `work` for each number below `count`, at most `most` at once, and returns the results in order.
fn at_once<T: Send>(count: usize, most: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
    thread::scope(|scope| {
        for _ in 0..most.min(count) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = results.get(number) else {
                        break;
                    };
                    let result = work(number);
                    *lock(place) = Some(result);
                }
            });
        }
    });
    results
        .into_iter()
        .filter_map(|place| place.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(seen: Seen) -> String {
    seen.map_or("nobody".into(), |address| address.to_string())
}
