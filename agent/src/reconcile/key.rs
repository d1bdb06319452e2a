//! The items of the work queue, and which parts of them are compared.

use std::{fmt, ops::BitOrAssign, sync::Arc};

/// The key of an item of the work queue.
///
/// The interfaces of a container are one item, as they have one lock, and as one of them may use the veth pair of
/// another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The host's own part: its NICs, and what pods need in the host's network.
    Node,
    /// All interfaces of the container with this ID.
    Container(Arc<str>),
}

impl Key {
    /// Returns the key of a container.
    #[must_use]
    pub fn container(id: &str) -> Self {
        Self::Container(id.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Container(id) => write!(f, "container {id}"),
        }
    }
}

/// The parts of a container that are compared besides its plan and its namespace. The node is always compared as a
/// whole.
///
/// If a container is named twice before it is reconciled, the union counts.
///
/// # Examples
///
/// ```
/// use ebbtide_agent::reconcile::Scope;
///
/// let mut scope = Scope::PLAN;
/// scope |= Scope::GUARD;
/// scope |= Scope::FOREIGN;
/// assert!(scope.guard && scope.foreign && !scope.apply);
/// assert!(scope.is_inside());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Everything is applied, even if it seems to exist: an older agent may have made it.
    pub apply: bool,
    /// The parts of its interfaces that the spoof guard relies on, which the pod may have changed.
    pub guard: bool,
    /// Whether anything foreign in the pod may route its replies.
    pub foreign: bool,
}

impl Scope {
    /// The plan and the namespace alone.
    pub const PLAN: Self = Self {
        apply: false,
        guard: false,
        foreign: false,
    };
    /// Everything that a take-over applies and compares.
    pub const APPLY: Self = Self {
        apply: true,
        ..Self::PLAN
    };
    /// What the spoof guard relies on.
    pub const GUARD: Self = Self {
        guard: true,
        ..Self::PLAN
    };
    /// What else may route replies.
    pub const FOREIGN: Self = Self {
        foreign: true,
        ..Self::PLAN
    };

    /// Whether the pod's namespace must be entered.
    #[must_use]
    pub const fn is_inside(self) -> bool {
        self.guard || self.foreign
    }
}

impl BitOrAssign for Scope {
    fn bitor_assign(&mut self, other: Self) {
        self.apply |= other.apply;
        self.guard |= other.guard;
        self.foreign |= other.foreign;
    }
}
