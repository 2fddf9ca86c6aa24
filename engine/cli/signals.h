// Ctrl-C as a question that loops ask; SIGTERM and Ctrl-C as something to wait for.
#pragma once

namespace weir::cli {

// From now on SIGINT sets a flag instead of ending the process, and interrupts a blocked read; a
// second one while the flag is set ends the process.
void CatchInterrupts();
bool Interrupted();
void ClearInterrupt();

// From now on SIGTERM and SIGINT are counted instead of ending the process, and a broken pipe is an
// error of the write. For a server; not together with CatchInterrupts.
void CatchTermination();
int Terminations();  // how many so far
// Returns when one comes, or |timeout_ms| has passed.
void AwaitTermination(int timeout_ms);

}  // namespace weir::cli
