//! What the suites share that are no lists of `#[test]`: a stage of their own, the
//! runtimes that they are run with, and a runner of cases. A suite starts daemons
//! once, shows a table at its end, and looks at what is left when all is over.

mod runner;
mod runtime;
mod snapshot;
mod stage;

pub use runner::{Case, Outcome, Runner};
pub use runtime::Runtime;
pub use snapshot::{Snapshot, settle};
pub use stage::Stage;

/// Names of functions and the functions, as a list of cases.
#[allow(unused_macros)]
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        &[$((concat!(module_path!(), "::", stringify!($name)), $name)),*]
    };
}
pub(crate) use cases;
