//! Requests that the engine has not begun.

use std::collections::VecDeque;

use crate::backend::GenerationRequest;

/// The pictures of each order, in order. `http::Admission` bounds how many there are.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<VecDeque<GenerationRequest>>);

impl Waiting {
    /// Adds a picture behind the others of its order, or a new order behind all others.
    pub(super) fn add(&mut self, request: GenerationRequest) {
        let of_same_order =
            |order: &&mut VecDeque<GenerationRequest>| order.front().is_some_and(|first| first.order.is_of_same_order(&request.order));
        match self.0.iter_mut().find(of_same_order) {
            Some(order) => order.push_back(request),
            None => self.0.push_back([request].into()),
        }
    }

    /// The request whose turn it is.
    pub(super) fn next(&self) -> Option<&GenerationRequest> {
        self.0.front()?.front()
    }

    /// Takes all requests that nobody waits for any more, whatever their turn: each holds a place, and the end of its run.
    pub(super) fn take_unwanted(&mut self) -> Vec<GenerationRequest> {
        let mut unwanted = Vec::new();
        for order in &mut self.0 {
            for request in std::mem::take(order) {
                if request.is_wanted() { order.push_back(request) } else { unwanted.push(request) }
            }
        }
        self.0.retain(|order| !order.is_empty());
        unwanted
    }

    /// Takes the request whose turn it is. The rest of its order goes behind all others.
    pub(super) fn take(&mut self) -> Option<GenerationRequest> {
        let mut order = self.0.pop_front()?;
        let request = order.pop_front();
        if !order.is_empty() {
            self.0.push_back(order);
        }
        request
    }
}
