#include "tools/trace/commands.h"

int main(int argc, char** argv) {
  return weir::trace_tool::Main(argc, argv);
}
