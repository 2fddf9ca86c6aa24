# weir_library, weir_test, weir_fuzzer: the only ways a target is made, so that flags are set once.

add_library(weir_flags INTERFACE)
target_compile_features(weir_flags INTERFACE cxx_std_20)
target_compile_options(weir_flags INTERFACE -Wall -Wextra -Wno-missing-field-initializers -Wconversion -Wsign-conversion -Wshadow
                                            -fvisibility=hidden -fno-omit-frame-pointer)
# A fused multiply-add is written where it is meant: the tokens must not depend on the optimiser.
target_compile_options(weir_flags INTERFACE -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # GCC 12 sees overlaps in std::string's operator+ that are not there (GCC bug 105651).
  target_compile_options(weir_flags INTERFACE -Wno-restrict)
endif()
if(WEIR_WERROR)
  target_compile_options(weir_flags INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(weir_flags INTERFACE -Wthread-safety)
endif()
if(WEIR_VALIDATE)
  target_compile_definitions(weir_flags INTERFACE WEIR_VALIDATE=1)
endif()
if(WEIR_SANITIZE)
  target_compile_options(weir_flags INTERFACE -fsanitize=${WEIR_SANITIZE}
                                              -fno-sanitize-recover=all)
  target_link_options(weir_flags INTERFACE -fsanitize=${WEIR_SANITIZE})
endif()
if(WEIR_BUILD_FUZZERS)
  target_compile_options(weir_flags INTERFACE -fsanitize=fuzzer-no-link,address,undefined
                                              -fno-sanitize-recover=undefined)
  target_link_options(weir_flags INTERFACE -fsanitize=address,undefined)
endif()

# weir_library(name SOURCES a.cc ... [PUBLIC lib ...] [PRIVATE lib ...])
function(weir_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  add_library(weir::${name} ALIAS ${name})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                            $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/weir>)
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(${name} PUBLIC ${ARG_PUBLIC} PRIVATE $<BUILD_INTERFACE:weir_flags> ${ARG_PRIVATE})
  target_compile_features(${name} PUBLIC cxx_std_20)
  set_property(GLOBAL APPEND PROPERTY WEIR_LIBRARIES ${name})
endfunction()

# weir_test(name SOURCES a_test.cc ... [LINK lib ...] [LABELS l ...] [TIMEOUT s])
# One GoogleTest program, one ctest entry; run in the source tree's root so that fixtures are found.
function(weir_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE weir_flags ${ARG_LINK} GTest::gtest GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# weir_fuzzer(name SOURCES fuzz_x.cc [LINK lib ...]): corpus in tests/fuzz/corpus/<name>/.
function(weir_fuzzer name)
  if(NOT WEIR_BUILD_FUZZERS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE weir_flags ${ARG_LINK})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_property(GLOBAL APPEND PROPERTY WEIR_FUZZERS ${name})
endfunction()
