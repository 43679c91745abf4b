//! Questions of visitors that the guest answers.

use std::collections::BTreeMap;

use vmrun_protocol::message::{Answer, Failure, Question, Report, Request};

use super::door::Key;
use super::messages::{Call, Reason, Refusal, Reply};
use super::serve::{Answered, Monitor, failed, wrong};
use super::state::Event;
use crate::Error;
use crate::machine::Guest;
use crate::session::unexpected;

/// How many questions may be open: those of visitors who left count as well.
const MAX_OPEN: usize = 64;

/// Questions that the guest has not answered yet.
#[derive(Debug, Default)]
pub struct Asks {
    open: BTreeMap<u32, Asked>,
    next: u32,
}

#[derive(Debug)]
struct Asked {
    key: Key,
    about: About,
}

/// What kind of answer is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Pause,
    Resume,
    Update,
    Processes,
    Statistics,
}

impl Asks {
    /// Those who wait, who will not be answered any more.
    pub fn take_all(&mut self) -> Vec<Key> {
        let open = std::mem::take(&mut self.open);
        open.into_values().map(|asked| asked.key).collect()
    }
}

impl<G: Guest> Monitor<'_, G> {
    /// Asks the guest for `key`.
    pub(super) fn ask(&mut self, key: Key, call: Call) -> Result<Answered, Error> {
        let (about, question) = match call {
            Call::Pause => (About::Pause, Question::Pause),
            Call::Resume => (About::Resume, Question::Resume),
            Call::Update(files) => (About::Update, Question::Update(files)),
            Call::Processes => (About::Processes, Question::Processes),
            Call::Statistics => (About::Statistics, Question::Statistics),
            _ => return Ok(Err(unasked("this is no question"))),
        };
        let next = match about {
            About::Pause => self.state.after(Event::Pause),
            About::Resume => self.state.after(Event::Resume),
            _ => self.state.exists().map(|()| self.state),
        };
        let next = match next {
            Ok(next) => next,
            Err(error) => return Ok(Err(wrong(error))),
        };
        if self.asks.open.len() >= MAX_OPEN {
            return Ok(Err(unasked("the guest does not answer")));
        }
        let tag = self.asks.next;
        if !self.tell_agent(&Request::Ask { tag, question })? {
            return Ok(Err(unasked("the guest does not listen")));
        }
        self.state = next;
        self.asks.next = tag.wrapping_add(1);
        self.asks.open.insert(tag, Asked { key, about });
        Ok(Ok(None))
    }

    /// An answer of the guest.
    pub(super) fn on_answer(
        &mut self,
        tag: u32,
        answer: Result<Answer, Failure>,
    ) -> Result<(), Error> {
        let report = |answer| Report::Answer { tag, answer };
        let Some(Asked { key, about }) = self.asks.open.remove(&tag) else {
            return Err(unexpected(self.doing(), &report(answer)));
        };
        let event = match (about, answer.is_ok()) {
            (About::Pause, true) => Some(Event::Paused),
            (About::Pause, false) => Some(Event::NotPaused),
            (About::Resume, true) => Some(Event::Resumed),
            (About::Resume, false) => Some(Event::NotResumed),
            _ => None,
        };
        // Once the container has ended it does not matter any more.
        if let Some(event) = event.filter(|_| self.state.exists().is_ok()) {
            self.go_on(event, &report(answer.clone()))?;
        }
        let reply = match (about, answer) {
            (About::Pause | About::Resume | About::Update, Ok(Answer::Done)) => Reply::Done,
            (About::Processes, Ok(Answer::Processes(guest))) => {
                let mut host_pids = vec![std::process::id()];
                host_pids.extend(self.door.pids());
                Reply::Processes { guest, host_pids }
            }
            (About::Statistics, Ok(Answer::Statistics(files))) => Reply::Statistics(files),
            (_, Err(failure)) => Reply::Refused(failed(failure)),
            (_, answer) => return Err(unexpected(self.doing(), &report(answer))),
        };
        self.tell(key, &reply)
    }
}

fn unasked(line: &str) -> Refusal {
    Refusal {
        reason: Reason::Failed,
        line: line.to_owned(),
    }
}
