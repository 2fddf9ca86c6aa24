# What `cmake --install` puts under the prefix: the program, and everything a program that embeds
# weir::Engine needs. Paths are relative, so an installed tree may be moved.
#
#   bin/weir                  installed by engine/cli
#   include/weir/vmm/...      public headers, laid out as in the source tree
#   lib/libweir_*.a           one static library a folder
#   lib/cmake/weir/           find_package(weir CONFIG): weir::weir
#   lib/pkgconfig/weir.pc     the same for other build systems
#   share/weir/prompts/       the prompts of `weir run`
#   share/weir/models/        shapes of published models, for `weir bench` with made-up weights
include(CMakePackageConfigHelpers)

# Dependents first: the order a single-pass linker needs.
set(WEIR_INSTALLED weir_engine weir_pager weir_policy)
if(WEIR_BUILD_CUDA_KERNELS)
  list(APPEND WEIR_INSTALLED weir_kernels_cuda)
endif()
list(APPEND WEIR_INSTALLED weir_kernels weir_text weir_model weir_vmm)

# weir::weir: what an embedding program links.
add_library(weir_embed INTERFACE)
add_library(weir::weir ALIAS weir_embed)
set_target_properties(weir_embed PROPERTIES EXPORT_NAME weir)
target_link_libraries(weir_embed INTERFACE ${WEIR_INSTALLED})

# Third-party libraries are looked for again where weir is used: weir-config.cmake makes these
# targets. Each hangs on the library that needs it, or a static link would get the order wrong.
target_link_libraries(weir_vmm INTERFACE $<INSTALL_INTERFACE:weir::boost_headers>)
target_link_libraries(weir_pager INTERFACE $<INSTALL_INTERFACE:weir::uring>)
target_link_libraries(weir_text INTERFACE $<INSTALL_INTERFACE:weir::pcre2>)
set(WEIR_PACKAGE_NUMA FALSE)
if(WEIR_NUMA_INCLUDE AND WEIR_NUMA_LIBRARY)
  set(WEIR_PACKAGE_NUMA TRUE)
  target_link_libraries(weir_vmm INTERFACE $<INSTALL_INTERFACE:weir::numa>)
endif()
get_filename_component(WEIR_URING_NAME ${WEIR_URING_LIBRARY} NAME)

# weir_install_headers(header...): these, and every header they include, at their places under
# include/weir. Followed, not listed by hand; tests/package_test.sh compiles what was installed.
function(weir_install_headers)
  set(queue ${ARGN})
  set(seen)
  while(queue)
    list(POP_FRONT queue header)
    if(header IN_LIST seen)
      continue()
    endif()
    list(APPEND seen ${header})
    set(path ${PROJECT_SOURCE_DIR}/${header})
    set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
    file(STRINGS ${path} included REGEX "^#include \"")
    list(TRANSFORM included REPLACE "^#include \"([^\"]+)\".*" "\\1")
    list(APPEND queue ${included})
    cmake_path(GET header PARENT_PATH folder)
    install(FILES ${path} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/weir/${folder} COMPONENT dev)
  endwhile()
endfunction()

# The engine, then what the layers below offer to who implements or drives them.
weir_install_headers(engine/engine.h engine/weight_loader.h
                     vmm/address_space.h vmm/host_driver.h vmm/sim_driver.h vmm/sim_faults.h
                     vmm/trace_audit.h vmm/trace_file.h policy/registry.h)
get_target_property(weir_vmm_definitions weir_vmm INTERFACE_COMPILE_DEFINITIONS)
set(WEIR_PC_CFLAGS "")
if("WEIR_HAVE_CUDA=1" IN_LIST weir_vmm_definitions)
  weir_install_headers(vmm/cuda_driver.h)
  set(WEIR_PC_CFLAGS " -DWEIR_HAVE_CUDA=1")
endif()

install(TARGETS weir_embed ${WEIR_INSTALLED} EXPORT weir-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev)
install(FILES ${PROJECT_SOURCE_DIR}/bench/prompts/default.jsonl
        DESTINATION ${CMAKE_INSTALL_DATADIR}/weir/prompts OPTIONAL)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/bench/models
        DESTINATION ${CMAKE_INSTALL_DATADIR}/weir OPTIONAL)

# The CMake package.
set(WEIR_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/weir)
install(EXPORT weir-targets NAMESPACE weir:: DESTINATION ${WEIR_PACKAGE_DIR} COMPONENT dev)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/weir-config.cmake.in
  ${PROJECT_BINARY_DIR}/package/weir-config.cmake
  INSTALL_DESTINATION ${WEIR_PACKAGE_DIR} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/weir-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/weir-config.cmake
              ${PROJECT_BINARY_DIR}/package/weir-config-version.cmake
        DESTINATION ${WEIR_PACKAGE_DIR} COMPONENT dev)

# weir.pc. A library found as a static one is named as a file, or the linker prefers the shared one.
function(weir_pc_library out path)
  get_filename_component(directory ${path} DIRECTORY)
  get_filename_component(file ${path} NAME)
  set(flags "")
  if(NOT directory IN_LIST CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES)
    set(flags "-L${directory} ")
  endif()
  if(file MATCHES "^lib(.*)\\.so$")
    string(APPEND flags "-l${CMAKE_MATCH_1}")
  else()
    string(APPEND flags "-l:${file}")
  endif()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()

list(TRANSFORM WEIR_INSTALLED PREPEND -l OUTPUT_VARIABLE WEIR_PC_LIBS)
list(JOIN WEIR_PC_LIBS " " WEIR_PC_LIBS)
weir_pc_library(WEIR_PC_SYSTEM_LIBS ${WEIR_URING_LIBRARY})
if(WEIR_PACKAGE_NUMA)
  weir_pc_library(numa ${WEIR_NUMA_LIBRARY})
  string(APPEND WEIR_PC_SYSTEM_LIBS " ${numa}")
endif()
if(WEIR_BUILD_CUDA_KERNELS)
  # Asked of the target: the variables of FindCUDAToolkit are known in kernels/ only.
  get_target_property(cudart CUDA::cudart_static IMPORTED_LOCATION)
  weir_pc_library(cudart ${cudart})
  string(APPEND WEIR_PC_SYSTEM_LIBS " ${cudart} -lrt")
endif()
foreach(library IN LISTS CMAKE_DL_LIBS)
  string(APPEND WEIR_PC_SYSTEM_LIBS " -l${library}")
endforeach()
file(RELATIVE_PATH WEIR_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" WEIR_PC_PREFIX "${WEIR_PC_PREFIX}")
configure_file(${PROJECT_SOURCE_DIR}/cmake/weir.pc.in ${PROJECT_BINARY_DIR}/package/weir.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/weir.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)

# An instrumented library can only be linked by a program built with the same flags.
if(WEIR_BUILD_TESTS AND NOT WEIR_SANITIZE AND NOT WEIR_BUILD_FUZZERS)
  add_test(NAME weir_package_test
           COMMAND ${PROJECT_SOURCE_DIR}/tests/package_test.sh ${PROJECT_BINARY_DIR})
  set_tests_properties(weir_package_test PROPERTIES TIMEOUT 300 LABELS package
    ENVIRONMENT "CXX=${CMAKE_CXX_COMPILER}")
endif()
