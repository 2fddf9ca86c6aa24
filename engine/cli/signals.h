// Ctrl-C as a question that loops ask.
#pragma once

namespace weir::cli {

// From now on SIGINT sets a flag instead of ending the process, and interrupts a blocked read; a
// second one while the flag is set ends the process.
void CatchInterrupts();
bool Interrupted();
void ClearInterrupt();

}  // namespace weir::cli
