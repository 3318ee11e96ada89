# Debian packages by cpack: `sluice` with the program, its manual, completion and documentation, and `sluice-dpdk` with the module,
# so that nobody else installs DPDK. scripts/package makes them. Who packages it says so:
#   cmake --preset release -DSLUICE_MAINTAINER="A. Packager <packager@their.org>"
set(SLUICE_MAINTAINER "The sluice authors <authors@sluice.dev>" CACHE STRING "maintainer of the Debian packages: NAME <ADDRESS>")
set(generated ${CMAKE_BINARY_DIR}/generated)
file(MAKE_DIRECTORY ${generated})
file(WRITE ${generated}/copyright "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: sluice

Files: *
Copyright: 2026 the authors of sluice
License: Apache-2.0
 On Debian systems the full text of the licence is in /usr/share/common-licenses/Apache-2.0.
")
string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
file(WRITE ${generated}/changelog "sluice (${PROJECT_VERSION}) unstable; urgency=medium

  * Release ${PROJECT_VERSION}.

 -- ${SLUICE_MAINTAINER}  ${date}
")
add_custom_command(OUTPUT ${generated}/sluice.1.gz ${generated}/sluice.bash ${generated}/changelog.gz
  COMMAND sh -c "$<TARGET_FILE:sluice> flags --man | gzip -9n > sluice.1.gz"
  COMMAND sh -c "$<TARGET_FILE:sluice> flags --completion > sluice.bash"
  COMMAND sh -c "gzip -9nc changelog > changelog.gz"
  WORKING_DIRECTORY ${generated} DEPENDS sluice VERBATIM)
add_custom_target(package_files DEPENDS ${generated}/sluice.1.gz)

set(doc share/doc/sluice)
install(TARGETS sluice RUNTIME DESTINATION bin COMPONENT program)
install(FILES ${generated}/sluice.1.gz DESTINATION share/man/man1 COMPONENT program)
install(FILES ${generated}/sluice.bash DESTINATION share/bash-completion/completions RENAME sluice COMPONENT program)
file(GLOB pages ${CMAKE_SOURCE_DIR}/docs/*.md)
install(FILES ${CMAKE_SOURCE_DIR}/README.md ${generated}/copyright ${generated}/changelog.gz DESTINATION ${doc} COMPONENT program)
install(FILES ${pages} DESTINATION ${doc}/docs COMPONENT program)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/deploy/ DESTINATION share/sluice COMPONENT program PATTERN install-on-node EXCLUDE)
install(PROGRAMS ${CMAKE_SOURCE_DIR}/deploy/kubernetes/installer/install-on-node DESTINATION share/sluice/kubernetes/installer COMPONENT program)
set(CPACK_COMPONENTS_ALL program)
if(TARGET sluice_dpdk)
  list(APPEND CPACK_COMPONENTS_ALL dpdk)
  install(TARGETS sluice_dpdk LIBRARY DESTINATION lib/sluice COMPONENT dpdk)
  install(FILES ${generated}/copyright ${generated}/changelog.gz DESTINATION share/doc/sluice-dpdk COMPONENT dpdk)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME sluice)
set(CPACK_PACKAGE_VENDOR sluice)
set(CPACK_PACKAGE_CONTACT "${SLUICE_MAINTAINER}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_NAME sluice)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_RECOMMENDS runc)
set(CPACK_DEBIAN_PROGRAM_DESCRIPTION "programs and containers on a TCP/IP stack in user space
sluice runs unmodified Linux programs and containers with a TCP/IP stack of
its own; the kernel's stack of their network namespace stays silent. It is a
command, and a runtime for Docker that wraps runc.")
set(CPACK_DEBIAN_DPDK_PACKAGE_NAME sluice-dpdk)
set(CPACK_DEBIAN_DPDK_PACKAGE_DEPENDS "sluice (= ${PROJECT_VERSION})")
set(CPACK_DEBIAN_DPDK_DESCRIPTION "DPDK devices for sluice
The module by which sluice bench, and programs that link sluice's library,
use Ethernet devices of DPDK.")
include(CPack)
