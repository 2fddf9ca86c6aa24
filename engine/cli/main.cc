#include "engine/cli/command_line.h"

int main(int argc, char** argv) {
  return weir::cli::Main(argc, argv);
}
