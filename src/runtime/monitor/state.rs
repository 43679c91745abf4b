//! What a container is doing, and what can happen to it then: one pure table.
//!
//! ```text
//! Creating ──▶ Created ──▶ Starting ──▶ Running ──▶ Stopped
//!                 │                        │
//!                 └─▶ Pausing ─▶ Paused ─▶ Resuming ─┐
//!                       ▲                            │ back to where it was
//!                       └────────────────────────────┘
//! ```
//!
//! From each but Creating the container's end leads to Stopped.

use super::messages::Status;

/// What the container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The machine starts, hooks run, the guest sets the container up.
    Creating,
    /// Its program waits to be run.
    Created,
    /// The guest was told to run it.
    Starting,
    /// It runs.
    Running,
    /// The guest was told to stop all processes of what it was doing before.
    Pausing(Before),
    /// They stand still.
    Paused(Before),
    /// The guest was told to let them go on.
    Resuming(Before),
    /// It has ended.
    Stopped,
}

/// What a paused container goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// [`State::Created`].
    Created,
    /// [`State::Running`].
    Running,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The guest has set it up.
    Created,
    /// Somebody wants its program run.
    Start,
    /// The program runs.
    Started,
    /// Somebody wants it paused.
    Pause,
    /// The guest has paused it.
    Paused,
    /// The guest could not.
    NotPaused,
    /// Somebody wants it to go on.
    Resume,
    /// The guest lets it go on.
    Resumed,
    /// The guest could not.
    NotResumed,
    /// Its init has ended, or could not be run.
    Ended,
}

/// What happened cannot happen now. The text is for what somebody wanted; runc has
/// the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(pub &'static str);

/// Of a container that has ended, or is not set up yet.
pub const NOT_RUNNING: Wrong = Wrong("container not running");

impl State {
    /// The state after `event`.
    pub fn after(self, event: Event) -> Result<Self, Wrong> {
        use Before as B;
        use Event as E;
        use State as S;
        Ok(match (self, event) {
            (S::Creating, E::Created) => S::Created,
            (S::Created, E::Start) => S::Starting,
            (S::Starting, E::Started) => S::Running,
            (S::Created, E::Pause) => S::Pausing(B::Created),
            (S::Running, E::Pause) => S::Pausing(B::Running),
            (S::Pausing(before), E::Paused) => S::Paused(before),
            (S::Pausing(before), E::NotPaused) => before.state(),
            (S::Paused(before), E::Resume) => S::Resuming(before),
            (S::Resuming(before), E::Resumed) => before.state(),
            (S::Resuming(before), E::NotResumed) => S::Paused(before),
            (S::Creating | S::Stopped, E::Ended) => return Err(NOT_RUNNING),
            (_, E::Ended) => S::Stopped,
            (_, E::Start) => return Err(self.cannot_start()),
            (_, E::Resume) => return Err(Wrong("container not paused")),
            _ => return Err(NOT_RUNNING),
        })
    }

    fn cannot_start(self) -> Wrong {
        Wrong(match self {
            Self::Creating | Self::Created => "cannot start a container in the creating state",
            Self::Starting | Self::Running => "cannot start an already running container",
            Self::Pausing(_) | Self::Paused(_) | Self::Resuming(_) => {
                "cannot start a container in the paused state"
            }
            Self::Stopped => "cannot start a container that has stopped",
        })
    }

    /// Whether the guest has a container that can be asked about.
    pub fn exists(self) -> Result<(), Wrong> {
        match self {
            Self::Creating | Self::Stopped => Err(NOT_RUNNING),
            _ => Ok(()),
        }
    }

    /// Whether a further process may be run.
    pub fn can_exec(self, ignore_paused: bool) -> Result<(), Wrong> {
        match self {
            Self::Creating => Err(NOT_RUNNING),
            Self::Stopped => Err(Wrong("cannot exec in a stopped container")),
            Self::Pausing(_) | Self::Paused(_) if !ignore_paused => Err(Wrong(
                "cannot exec in a paused container (use --ignore-paused to override)",
            )),
            _ => Ok(()),
        }
    }

    /// As callers are told.
    pub fn status(self) -> Status {
        match self {
            Self::Creating => Status::Creating,
            Self::Created | Self::Starting | Self::Pausing(Before::Created) => Status::Created,
            Self::Running | Self::Pausing(Before::Running) => Status::Running,
            Self::Paused(_) | Self::Resuming(_) => Status::Paused,
            Self::Stopped => Status::Stopped,
        }
    }
}

impl Before {
    fn state(self) -> State {
        match self {
            Self::Created => State::Created,
            Self::Running => State::Running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 9] = [
        State::Creating,
        State::Created,
        State::Starting,
        State::Running,
        State::Pausing(Before::Running),
        State::Paused(Before::Running),
        State::Paused(Before::Created),
        State::Resuming(Before::Created),
        State::Stopped,
    ];

    fn walk(events: &[Event]) -> State {
        let step = |state: State, event: &Event| state.after(*event).unwrap();
        events.iter().fold(State::Creating, step)
    }

    #[test]
    fn a_life_with_pauses() {
        use Event::*;
        assert_eq!(walk(&[Created, Start, Started]), State::Running);
        let before = walk(&[Created, Pause, Paused, Resume, Resumed]);
        assert_eq!(before, State::Created);
        let running = walk(&[Created, Start, Started, Pause, NotPaused]);
        assert_eq!(running, State::Running);
        let paused = walk(&[Created, Start, Started, Pause, Paused, Resume, NotResumed]);
        assert_eq!(paused, State::Paused(Before::Running));
        assert_eq!(paused.after(Ended), Ok(State::Stopped));
    }

    #[test]
    fn everything_that_exists_can_end_once() {
        for state in STATES {
            let ends = state.after(Event::Ended);
            assert_eq!(ends.is_ok(), state.exists().is_ok(), "{state:?}");
        }
    }

    #[test]
    fn texts_that_callers_look_for() {
        let told = |state: State, event| state.after(event).unwrap_err().0;
        let paused = State::Paused(Before::Running);
        for (state, text) in [
            (State::Running, "cannot start an already running container"),
            (paused, "cannot start a container in the paused state"),
            (State::Stopped, "cannot start a container that has stopped"),
        ] {
            assert_eq!(told(state, Event::Start), text);
        }
        assert_eq!(told(paused, Event::Pause), "container not running");
        assert_eq!(told(State::Stopped, Event::Pause), "container not running");
        assert_eq!(told(State::Running, Event::Resume), "container not paused");
        assert!(paused.can_exec(true).is_ok());
        assert!(paused.can_exec(false).is_err());
        assert!(State::Created.can_exec(false).is_ok());
    }

    #[test]
    fn what_the_guest_says_at_the_wrong_time() {
        for event in [
            Event::Created,
            Event::Started,
            Event::Paused,
            Event::Resumed,
        ] {
            let fitting = STATES.iter().filter(|s| s.after(event).is_ok()).count();
            assert_eq!(fitting, 1, "{event:?}");
        }
    }
}
